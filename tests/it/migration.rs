//! Holds `docs/migration.md`: each row names its tests, and here they are, with the names that the
//! other proxies have.

use std::collections::HashSet;

use standin::{Fault, Match, Options, Quirks, Server, Standin};

use crate::config::run;
use crate::protocol::{named, tests};
use crate::support::{Cached, Front, Http, Pki, Proxy, SOON, Scratch, wait_until};

const TAG: &str = "/v2/team/app/manifests/1.0";
const UPLOADS: &str = "/v2/team/app/blobs/uploads/";
/// Fewer rows than this would mean that the page was not read.
const ROWS_MIN: usize = 35;

/// What is wrong with the page.
fn faults(page: &str, tests: &HashSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    let rows = rows.filter(|row| !row.starts_with("there |") && !row.starts_with("---"));
    let mut count = 0;
    for row in rows {
        count += 1;
        let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
        let [_, _, held] = cells[..] else {
            faults.push(format!("three cells, not {}: {row}", cells.len()));
            continue;
        };
        let mut names = named(held).peekable();
        if names.peek().is_none() {
            faults.push(format!("no test holds: {row}"));
        }
        faults.extend(
            names
                .filter(|name| !tests.contains(*name))
                .map(|name| format!("no {name}")),
        );
    }
    let here = tests.iter().filter(|test| test.starts_with("migration::"));
    let unnamed = here.filter(|test| !page.contains(&format!("`{test}`")));
    faults.extend(unnamed.map(|test| format!("not on the page: {test}")));
    if count < ROWS_MIN {
        faults.push(format!("{count} rows, expected {ROWS_MIN}"));
    }
    faults
}

#[test]
fn every_row_has_its_test_and_every_test_its_row() {
    let path = format!("{}/docs/migration.md", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(path).expect("docs/migration.md");
    let own = [
        "every_row_has_its_test_and_every_test_its_row",
        "a_row_without_its_test_is_seen",
    ];
    let mut tests = tests();
    tests.retain(|test| !own.iter().any(|own| *test == format!("migration::{own}")));
    let faults = faults(&page, &tests);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_row_without_its_test_is_seen() {
    let page = |held: &str| {
        let head = "| there | here | held by |\n| --- | --- | --- |\n";
        head.to_owned() + &format!("| `A` | `B` | {held} |\n").repeat(ROWS_MIN)
    };
    let tests: HashSet<String> = ["migration::a".to_owned()].into();
    assert!(faults(&page("`migration::a`"), &tests).is_empty());
    assert_eq!(faults(&page("`migration::b`"), &tests).len(), ROWS_MIN + 1);
    assert_eq!(faults(&page("nothing"), &tests).len(), ROWS_MIN + 1);
    assert_eq!(faults("", &tests).len(), 2);
}

/// A stand-in with one image.
fn standin() -> Standin {
    let standin = Standin::start(Options::default());
    standin.put_image("team/app", "1.0", &[]);
    standin
}

/// The value that `settings` shows.
fn shown(name: &str, variables: &[(&str, &str)]) -> String {
    let shown = run(&["settings"], variables);
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    let mut lines = shown.out.lines().map(|line| line.split_whitespace());
    let words = lines.find_map(|mut words| (words.next() == Some(name)).then_some(words));
    words
        .and_then(|mut words| words.next())
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn the_go_proxys_settings_work_as_they_stand() {
    let standin = standin();
    let settings = [
        ("ECR", ""),
        ("LISTEN_HOST", "127.0.0.1"),
        ("LISTEN_PORT", "0"),
        ("LOG_LEVEL", "WARN"),
        ("DISABLE_PROXY_HEADERS", "true"),
    ];
    let mut command = Proxy::command();
    command
        .envs(standin.settings())
        .envs(settings)
        .env("LOG_LEVEL", "INFO");
    let front = Front {
        proxy: Proxy::start_command(command),
        standin,
    };
    assert_eq!(front.get(TAG).status, 200);
    let blob = front.standin.add_blob("team/app", b"bytes");
    assert_eq!(front.get(&format!("/v2/team/app/blobs/{blob}")).status, 200);
    let forged = [
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.example"),
    ];
    let got = front.call("POST", UPLOADS, &forged, b"");
    let location = got.header("Location").unwrap();
    assert!(!location.contains("evil.example"), "{location}");
    assert_eq!(shown("LOG_LEVEL", &settings[1..]), "WARN");
}

#[test]
fn without_a_registry_setting_readyz_names_the_one_in_use() {
    let standin = standin();
    let registry = standin.registry_url();
    let proxy = Proxy::in_front_of(&standin, &[("ECR", "")]);
    let front = Front { proxy, standin };
    wait_until("a token is there", SOON, || {
        front.get("/readyz").status == 200
    });
    let said = front.get("/readyz").text();
    assert!(said.contains(&format!("registries: {registry}")), "{said}");
    assert_eq!(front.get("/healthz").status, 200);
    let version = front.get("/version").text();
    assert!(
        version.contains("\"commit\"") && version.contains("\"build_date\""),
        "{version}"
    );
}

#[test]
fn the_nginx_proxys_settings_work_as_they_stand() {
    let standin = standin();
    let upstream = standin.registry_url();
    let settings = [
        ("ECR", ""),
        ("LISTEN_PORT", ""),
        ("PORT", "0"),
        ("UPSTREAM", upstream.as_str()),
        ("CACHE_MAX_SIZE", "100g"),
        ("CACHE_INACTIVE_TIME", "1y"),
        ("AWS_USE_EC2_ROLE_FOR_AUTH", "true"),
        ("BEHIND_SSL_PROXY", "true"),
    ];
    let proxy = Proxy::in_front_of(&standin, &settings);
    let front = Front { proxy, standin };
    assert_eq!(front.get(TAG).status, 200);
    let log = front.proxy.log();
    assert!(!log.contains("did you mean"), "{log}");
    let hundred = (100_u64 << 30).to_string();
    let size = shown("CACHE_MAX_SIZE", &[("CACHE_MAX_SIZE", "100g")]);
    assert!(size == "100g" || size == hundred, "{size}");
    assert_eq!(shown("RESOLVER", &[("RESOLVER", "8.8.8.8")]), "8.8.8.8");
    let refused = run(&["settings"], &[("RESOLVER", "8.8.8.8 valid=30s")]);
    assert_eq!(refused.code, Some(64));
}

#[test]
fn dreamlabs_settings_work_as_they_stand() {
    let standin = standin();
    let host = standin.registry_url();
    let settings = [
        ("ECR", host.as_str()),
        ("RENEW_INTERVAL_HOURS", "12"),
        ("CACHE_KEY", "$scheme$proxy_host$uri$request_method"),
        ("CACHE_MAX_SIZE", "75g"),
        ("LISTEN_PORT", ""),
        ("PORT", "0"),
    ];
    let front = Front {
        proxy: Proxy::in_front_of(&standin, &settings),
        standin,
    };
    assert_eq!(front.get(TAG).status, 200);
    let bare = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    assert_eq!(
        shown("ECR", &[("ECR", bare), ("RESOLVER", "10.0.0.2")]),
        bare
    );
    let refused = run(&["settings"], &[("RENEW_INTERVAL_HOURS", "13")]);
    assert_eq!(refused.code, Some(64));
}

#[test]
fn the_keys_of_nginxs_cache_are_taken() {
    for key in [
        "$uri",
        "$scheme$proxy_host$uri$request_method",
        "$scheme$host$request_uri",
    ] {
        let cached = Cached::with(&[("CACHE_KEY", key)]);
        cached.standin.put_image("team/app", "1.0", &[]);
        let found: Vec<String> = (0..2)
            .map(|_| cached.get(TAG).header("X-Cache").unwrap().to_owned())
            .collect();
        assert_eq!(found, ["MISS", "HIT"], "{key}");
    }
    let refused = run(&["settings"], &[("CACHE_KEY", "$nginx_version")]);
    assert_eq!(refused.code, Some(64));
}

#[test]
fn tls_by_the_names_of_both() {
    for (certificate, key) in [
        ("REGISTRY_HTTP_TLS_CERTIFICATE", "REGISTRY_HTTP_TLS_KEY"),
        ("SSL_CERTIFICATE", "SSL_KEY"),
    ] {
        let pki = Pki::new();
        let paths = pki.settings();
        let path = |name: &str| {
            paths
                .iter()
                .find(|(known, _)| *known == name)
                .unwrap()
                .1
                .clone()
        };
        let files = [
            (certificate, path("SSL_CERTIFICATE")),
            (key, path("SSL_KEY")),
        ];
        let files = files.each_ref().map(|(name, path)| (*name, path.as_str()));
        let front = Front::with(
            Options::default(),
            &[("ENABLE_SSL", "true"), files[0], files[1]],
        );
        let mut http = Http::connect_tls(front.address(), &pki.client()).unwrap();
        assert_eq!(http.get("/healthz").status, 200);
        // The files alone switch nothing on, here as there.
        let front = Front::with(Options::default(), &files);
        assert_eq!(front.get("/healthz").status, 200);
        front.proxy.wait_for_log("not used: ENABLE_SSL is not true");
        let odd = run(
            &["settings"],
            &[("ENABLE_SSL", "enabled"), files[0], files[1]],
        );
        assert_eq!(odd.code, Some(64));
    }
}

#[test]
fn behind_a_terminator_links_lead_back_through_it() {
    let quirks = Quirks {
        absolute_locations: true,
        ..Quirks::ecr()
    };
    let options = Options {
        quirks,
        ..Options::default()
    };
    let fields = [
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "proxy.example"),
    ];
    for (setting, believed) in [("false", true), ("true", false)] {
        let front = Front::with(options.clone(), &[("DISABLE_PROXY_HEADERS", setting)]);
        let got = front.call("POST", UPLOADS, &fields, b"");
        let location = got.header("Location").unwrap();
        let through = location.starts_with("https://proxy.example/v2/");
        assert_eq!(through, believed, "{location}");
    }
}

#[test]
fn what_came_from_the_cache_is_told_in_the_same_field() {
    let cached = Cached::start();
    let blob = cached.standin.add_blob("team/app", b"bytes");
    let target = format!("/v2/team/app/blobs/{blob}");
    for how in ["MISS", "HIT"] {
        let got = cached.get(&target);
        assert_eq!(got.header("X-Cache-Status"), Some(how));
        cached.wait_for_blob(&blob);
    }
}

#[test]
fn files_of_nginxs_cache_are_left_alone() {
    let scratch = Scratch::new();
    let theirs = scratch.path().join("cache/d/41");
    std::fs::create_dir_all(&theirs).unwrap();
    std::fs::write(theirs.join("d41d8cd98f00b204e9800998ecf8427e"), "KEY: /v2/").unwrap();
    let before = std::fs::metadata(&theirs).unwrap().modified().unwrap();
    let cached = Cached::on(scratch, Options::default(), &[]);
    cached.standin.put_image("team/app", "1.0", &[]);
    assert_eq!(cached.get(TAG).status, 200);
    assert!(cached.path("aws-ecr-proxy/oci-layout").exists());
    let after = cached
        .path("cache/d/41")
        .metadata()
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(before, after);
}

#[test]
fn a_credentials_file_in_the_home_directory_is_found() {
    let standin = standin();
    let own = standin.settings();
    let key = |name: &str| {
        own.iter()
            .find(|(known, _)| *known == name)
            .unwrap()
            .1
            .clone()
    };
    let keys = format!(
        "[default]\naws_access_key_id={}\naws_secret_access_key = {}\nregion = eu-west-1\n",
        key("AWS_ACCESS_KEY_ID"),
        key("AWS_SECRET_ACCESS_KEY"),
    );
    for (file, variable) in [("credentials", "HOME"), ("config", "HOME"), ("keys", "")] {
        let home = Scratch::new();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let path = home.path().join(".aws").join(file);
        std::fs::write(&path, &keys).unwrap();
        let place = match variable {
            "HOME" => ("HOME", home.text().to_owned()),
            _ => (
                "AWS_SHARED_CREDENTIALS_FILE",
                path.to_str().unwrap().to_owned(),
            ),
        };
        let settings = [
            (place.0, place.1.as_str()),
            ("AWS_ACCESS_KEY_ID", ""),
            ("AWS_SECRET_ACCESS_KEY", ""),
        ];
        let proxy = Proxy::in_front_of(&standin, &settings);
        let got = Http::get_once(proxy.address(), TAG);
        assert_eq!(got.status, 200, "{file}: {}", got.text());
    }
}

#[test]
fn catalinpans_names_are_answered_with_ours() {
    let theirs = [
        ("AWS_KEY", "AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET", "AWS_SECRET_ACCESS_KEY"),
        ("REGION", "AWS_REGION"),
        ("RENEW_TOKEN", "RENEW_INTERVAL_HOURS"),
    ];
    let standin = standin();
    let mut settings: Vec<(&str, &str)> = theirs.iter().map(|(name, _)| (*name, "6h")).collect();
    settings.extend(theirs.iter().map(|(_, ours)| (*ours, "")));
    let proxy = Proxy::in_front_of(&standin, &settings);
    for (name, ours) in theirs {
        proxy.wait_for_log(&format!("WARN {name} is no setting; did you mean {ours}?"));
    }
    let ping = Http::get_once(proxy.address(), "/ping");
    assert_eq!(ping.status, 404);
    assert!(ping.text().contains("use /healthz"), "{}", ping.text());
    assert_eq!(Http::get_once(proxy.address(), "/healthz").status, 200);
    let check = run(&["check"], &settings);
    assert_ne!(check.code, Some(0));
    let said = check.out + &check.err;
    for (name, ours) in theirs {
        let hint = format!("{name} is no setting; did you mean {ours}?");
        assert!(said.contains(&hint), "{said}");
    }
}

#[test]
fn tags_come_page_by_page() {
    let front = Front::start();
    front.standin.put_image("team/app", "1.0", &[]);
    front.standin.add_tags("team/app", 300);
    let got = front.get("/v2/team/app/tags/list?n=100");
    let list: serde_json::Value = serde_json::from_slice(&got.body).unwrap();
    assert_eq!(list["tags"].as_array().unwrap().len(), 100);
    assert!(
        got.header("Link")
            .is_some_and(|link| link.contains("/v2/team/app/tags/list"))
    );
}

#[test]
fn pages_in_a_browser_need_a_setting() {
    for (settings, allowed, preflight) in [
        (vec![], None, 405),
        (vec![("ACCESS_CONTROL_ALLOW_ORIGIN", "*")], Some("*"), 204),
    ] {
        let front = Front::with(Options::default(), &settings);
        let origin = [("Origin", "https://ui.example")];
        let got = front.call("GET", "/v2/", &origin, b"");
        assert_eq!(got.header("Access-Control-Allow-Origin"), allowed);
        assert_eq!(
            front.call("OPTIONS", "/v2/", &origin, b"").status,
            preflight
        );
    }
}

#[test]
fn wrong_credentials_do_not_end_the_process() {
    let front = Front::start();
    front.standin.fault(
        Match::api().always(),
        Fault::aws_error(
            400,
            "UnrecognizedClientException",
            "The security token is invalid.",
        ),
    );
    let mut again = Proxy::in_front_of(&front.standin, &[]);
    let ready = || Http::get_once(again.address(), "/readyz");
    wait_until("/readyz tells why", SOON, || {
        ready().status == 503 && ready().text().contains("UnrecognizedClientException")
    });
    assert!(again.is_alive());
    assert!(front.seen(Server::Registry).is_empty());
}
