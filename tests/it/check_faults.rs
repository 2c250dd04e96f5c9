//! `check` in set-ups that cannot work: each fails at the right step, with the remedy.

use standin::{Dns, Fault, Layer, Match, Server};

use crate::check::{check, check_with, standin};
use crate::support::{Front, Pki, Proxy, Scratch};
use crate::upstream_hostile::{Scripted, reply};

#[test]
fn bug_a_web_site_was_taken_for_a_registry() {
    let site = Scripted::start(|_, stream| {
        let head = "200 OK\r\nContent-Type: text/html";
        reply(stream, head, "<!doctype html><title>Gallery</title>")
    });
    let run = check(&standin(), &[("ECR", &site.url())]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    run.is(
        "registry",
        "FAIL",
        &["a web site and no registry", "public.ecr.aws"],
    );
}

#[test]
fn a_port_that_is_taken_is_told_with_its_process() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let run = check(&standin(), &[("LISTEN_PORT", &port)]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    let process = format!("(process {})", std::process::id());
    run.is(
        "port",
        "FAIL",
        &["the port is taken by ", &process, "or LISTEN_PORT"],
    );
    // A proxy that runs already is no fault.
    let front = Front::start();
    let port = front.address().port().to_string();
    let run = check(&front.standin, &[("LISTEN_PORT", &port)]);
    assert_eq!(run.code, Some(0), "{}", run.out);
    run.is(
        "port",
        "ok",
        &["is served already, by aws-ecr-proxy (process "],
    );
    // And its start says the same.
    let mut command = Proxy::command();
    command
        .envs(front.standin.settings())
        .env("LISTEN_PORT", &port);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(
        log.contains("the port is taken by aws-ecr-proxy (process "),
        "{log}"
    );
}

#[test]
fn certificates_are_judged_before_a_client_does() {
    let (standin, pki) = (standin(), Pki::new());
    let own = pki.settings();
    let settings: Vec<(&str, &str)> = own.iter().map(|(k, v)| (*k, v.as_str())).collect();
    check(&standin, &settings).is("tls", "ok", &["for 127.0.0.1, good until 2090"]);
    let old = pki.authority.sign("127.0.0.1", 2020);
    pki.write("tls.key", &old.key.serialize_pem());
    pki.write("tls.crt", &old.certificate.pem());
    let run = check(&standin, &settings);
    assert_eq!(run.code, Some(1), "{}", run.out);
    run.is("tls", "FAIL", &["ended 2020-01-01T", "renew it"]);
    pki.write("tls.key", include_str!("../data/tls/version-1.key"));
    pki.write("tls.crt", include_str!("../data/tls/version-1.crt"));
    let run = check(&standin, &settings);
    assert_eq!(run.code, Some(1), "{}", run.out);
    run.is(
        "tls",
        "FAIL",
        &["X.509 certificate of version 1", "subjectAltName"],
    );
}

#[test]
fn a_cache_on_a_full_disk_is_told() {
    let (standin, folder) = (standin(), Scratch::new());
    let directory = folder.path().to_str().unwrap().to_owned();
    // A file system of its own, in a namespace of its own, so that nobody need be root.
    let script = format!(
        "mount -t tmpfs -o size=16k tmpfs {directory} && mkdir {directory}/cache && \
         head -c 65536 /dev/zero > {directory}/fill; exec \"$0\" check"
    );
    let binary = Proxy::command().get_program().to_owned();
    let mut command = std::process::Command::new("unshare");
    command.args(["--map-root-user", "--mount", "/bin/sh", "-c", &script]);
    command.arg(binary).envs(standin.settings());
    command.env("CACHE_DIR", format!("{directory}/cache"));
    command
        .env("LISTEN_PORT", "0")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    let output = command.output().expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stderr);
    // Without root the kernel must allow user namespaces.
    assert!(
        !said.contains("unshare:") && !said.contains("mount:"),
        "{said}"
    );
    let out = String::from_utf8(output.stdout).unwrap();
    let line = out
        .lines()
        .find(|line| line.contains("  cache  "))
        .unwrap_or_default();
    assert!(
        line.starts_with("FAIL") && line.contains("a full disk"),
        "{out}"
    );
    assert!(line.contains("free some space"), "{line}");
    assert_eq!(output.status.code(), Some(1), "{out}");
}

#[test]
fn a_quota_that_the_disk_does_not_hold_is_a_remark() {
    let (standin, folder) = (standin(), Scratch::new());
    let directory = folder.path().to_str().unwrap();
    let settings = [("CACHE_DIR", directory), ("CACHE_MAX_SIZE", "900t")];
    let run = check(&standin, &settings);
    assert_eq!(run.code, Some(0), "{}", run.out);
    run.is("quota", "note", &["900.0 TiB", "set CACHE_MAX_SIZE below"]);
}

#[test]
fn storage_that_is_out_of_reach_is_told_before_a_layer_is_missed() {
    let standin = standin();
    standin.put_image("team/app", "1.0", &[Layer::of_files(&[("a", b"a")])]);
    let run = check_with(&standin, &["team/app:1.0"], &[]);
    assert_eq!(run.code, Some(0), "{}", run.out);
    run.is("manifest", "ok", &["/v2/team/app/manifests/1.0"]);
    run.is(
        "layer",
        "ok",
        &[
            "the first byte of sha256:",
            "by the host that the registry named",
        ],
    );
    standin.down(Server::S3);
    let run = check_with(&standin, &["team/app:1.0"], &[]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    run.is("registry", "ok", &[]);
    let remedy = "S3 gateway endpoint (com.amazonaws.REGION.s3)";
    run.is(
        "storage",
        "FAIL",
        &[&standin.blob_host(), "firewall", remedy],
    );
    run.is("manifest", "ok", &[]);
    run.is("layer", "FAIL", &[&standin.blob_host(), remedy]);
}

#[test]
fn an_action_that_is_not_granted_is_named() {
    for (path, action, step) in [
        ("/manifests/", "ecr:BatchGetImage", "manifest"),
        ("/blobs/", "ecr:GetDownloadUrlForLayer", "layer"),
    ] {
        let standin = standin();
        standin.put_image("team/app", "1.0", &[Layer::of_files(&[("a", b"a")])]);
        // ECR's own words name the action; without them the step does.
        for said in [action, "nothing that is known"] {
            let message = format!(
                "denied: User: arn:aws:iam::1:user/x is not authorized to perform: {said} on \
                 resource: y"
            );
            let fault = Fault::Status(403, Vec::new(), message.into_bytes());
            standin.fault(Match::registry().path(path).always(), fault);
            let run = check_with(&standin, &["team/app:1.0"], &[]);
            assert_eq!(run.code, Some(1), "{}", run.out);
            run.is("registry", "ok", &[]);
            run.is(
                step,
                "FAIL",
                &[
                    "403: denied: User: arn:aws:iam::1:user/x",
                    &format!("grant {action} on the repository team/app"),
                ],
            );
        }
    }
}

#[test]
fn an_image_that_is_not_there_or_has_no_name_is_told() {
    let standin = standin();
    let run = check_with(&standin, &["team/app:9"], &[]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    run.is("manifest", "FAIL", &["404", "there is no such image"]);
    run.is("layer", "skip", &[]);
    let run = check_with(&standin, &["elsewhere.test/team/app:9"], &[]);
    run.is("manifest", "FAIL", &["no registry in ECR has this host"]);
    let run = check_with(&standin, &["Team/App:1"], &[]);
    assert_eq!(run.code, Some(64), "{}", run.out);
    run.is("image", "FAIL", &["expected an image as in"]);
}

#[test]
fn keys_that_have_ended_are_told() {
    let standin = standin();
    let ended = Fault::aws_error(
        400,
        "ExpiredTokenException",
        "The security token is expired",
    );
    standin.fault(Match::api().always(), ended);
    let run = check(&standin, &[("AWS_SESSION_TOKEN", "x")]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    run.is("token", "FAIL", &["ExpiredTokenException", "expired"]);
}

#[test]
fn a_region_that_is_not_the_hosts_is_a_remark_and_a_wrong_one_a_failure() {
    let (standin, dns) = (standin(), Dns::start());
    let resolver = dns.address();
    let settings = [
        ("ECR", "123456789012.dkr.ecr.us-east-1.amazonaws.com"),
        ("RESOLVER", &resolver),
    ];
    let run = check(&standin, &settings);
    let host = "123456789012.dkr.ecr.us-east-1.amazonaws.com is in us-east-1, which counts";
    run.is("region", "note", &["AWS_REGION=eu-west-1", host]);
    // Nobody resolves AWS's names here: the steps that need them fail, each by its name.
    assert_eq!(run.code, Some(1), "{}", run.out);
    run.is("dns", "FAIL", &["check the name in ECR, and RESOLVER"]);
    let bucket = "prod-us-east-1-starport-layer-bucket.s3.us-east-1.amazonaws.com";
    run.is("storage", "FAIL", &[bucket, "the region in ECR"]);
    // AWS says which region the signature should name.
    let run = check(&standin, &[("AWS_REGION", "us-east-1")]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    run.is(
        "token",
        "FAIL",
        &["should be scoped to", "check AWS_REGION"],
    );
}

#[test]
fn an_outbound_proxy_that_is_away_is_a_step_of_its_own() {
    let settings = [
        ("ECR", "http://registry.test:5000"),
        ("HTTP_PROXY", "http://127.0.0.1:1"),
        ("ALLOW_PLAIN_TOKEN", "true"),
    ];
    let run = check(&standin(), &settings);
    run.is(
        "proxy",
        "FAIL",
        &[
            "http://127.0.0.1:1 (HTTP_PROXY)",
            "out of reach",
            "NO_PROXY",
        ],
    );
}

#[test]
fn the_table_is_a_document_on_demand() {
    let standin = standin();
    let run = check_with(&standin, &["--json"], &[]);
    assert_eq!(
        (run.code, run.err.contains('{')),
        (Some(0), false),
        "{}",
        run.out
    );
    let document: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(document["ok"], true);
    let steps = document["steps"].as_array().unwrap();
    assert_eq!(
        (&steps[0]["step"], &steps[0]["outcome"]),
        (&"settings".into(), &"ok".into())
    );
    assert_eq!(steps.len(), 14);
    let run = check_with(&standin, &["--json"], &[("WORKERS", "0")]);
    assert_eq!(run.code, Some(64));
    let document: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(
        (&document["ok"], &document["steps"][0]["outcome"]),
        (&false.into(), &"fail".into())
    );
}

#[test]
fn bug_an_address_for_metrics_that_is_taken_passed_the_check() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = check(&standin(), &[("METRICS_LISTEN", &address)]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    run.is(
        "port",
        "FAIL",
        &[&address, "taken by", "set METRICS_LISTEN"],
    );
    // The two addresses are one.
    let port = taken.local_addr().unwrap().port().to_string();
    drop(taken);
    let settings = [("LISTEN_PORT", port.as_str()), ("METRICS_LISTEN", &address)];
    let run = check(&standin(), &settings);
    assert_eq!(run.code, Some(1), "{}", run.out);
    run.is("port", "FAIL", &[&address, "set METRICS_LISTEN"]);
    let run = check(&standin(), &[("METRICS_LISTEN", "127.0.0.1:0")]);
    run.is("port", "ok", &["can be bound (METRICS_LISTEN)"]);
}

#[test]
fn bug_clocks_were_compared_with_an_aws_that_had_not_answered() {
    let run = check(&standin(), &[("AWS_ENDPOINT_URL", "http://127.0.0.1:1")]);
    run.is("token", "FAIL", &["connect failed"]);
    run.is("clock", "skip", &["AWS has not answered"]);
}

#[test]
fn bug_a_host_that_was_silent_was_not_named() {
    // The listener's backlog takes the connections; nobody ever answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let run = check(&standin(), &[("BLOB_HOSTS", &address)]);
    run.is("storage", "FAIL", &[&address, "no layer can be pulled"]);
}
