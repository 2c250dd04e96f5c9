//! Referrers: through the API, through the tag that takes its place, and without upstream.

use std::time::Duration;

use serde_json::{Value, json};
use standin::image::{INDEX, MANIFEST};
use standin::{Fault, Image, Layer, Match, Options, Quirks, Server};

use crate::support::{Cached, Http, Response, SOON, Scratch, error_of, target_of, wait_until};

const SIGNATURE: &str = "application/vnd.example.signature";
const SBOM: &str = "application/vnd.example.sbom";

/// A registry with an image that has a signature and an SBOM.
struct Signed {
    cached: Cached,
    image: Image,
    signature: Image,
    sbom: Image,
}

impl Signed {
    fn with(quirks: Quirks, settings: &[(&str, &str)]) -> Self {
        let options = Options {
            quirks,
            ..Options::default()
        };
        let cached = Cached::on(Scratch::new(), options, settings);
        let layer = Layer::of_files(&[("hello", b"signed")]);
        let image = cached.standin.put_image("team/app", "1.0", &[layer]);
        let attach = |kind| {
            let subject = &image.manifest;
            cached.standin.attach("team/app", "sha256:", subject, kind)
        };
        let (signature, sbom) = (attach(SIGNATURE), attach(SBOM));
        Self {
            cached,
            image,
            signature,
            sbom,
        }
    }

    /// Where the referrers of the image are.
    fn target(&self) -> String {
        format!("/v2/team/app/referrers/{}", self.image.manifest)
    }

    fn of_type(&self, kind: &str) -> String {
        format!(
            "{}?artifactType={}",
            self.target(),
            kind.replace('/', "%2F")
        )
    }

    /// Both of them, sorted.
    fn both(&self) -> Vec<String> {
        let mut both = vec![self.signature.manifest.clone(), self.sbom.manifest.clone()];
        both.sort();
        both
    }

    fn calls(&self) -> usize {
        self.cached
            .standin
            .count(Server::Registry, "GET", "/referrers/")
    }

    fn get(&self, target: &str) -> Response {
        self.cached.get(target)
    }

    /// The tag that stands for the API, and cosign's.
    fn tag(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.image.manifest.replace(':', "-"))
    }

    fn pull(&self) {
        let manifest = self.get("/v2/team/app/manifests/1.0");
        assert_eq!(manifest.body, self.image.bytes);
    }
}

/// The digests in a list of referrers, sorted.
fn listed(got: &Response) -> Vec<String> {
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(got.header("Content-Type"), Some(INDEX));
    let list: Value = serde_json::from_slice(&got.body).unwrap();
    assert_eq!(
        (&list["schemaVersion"], &list["mediaType"]),
        (&json!(2), &json!(INDEX))
    );
    let manifests = list["manifests"].as_array().unwrap().iter();
    let digests = manifests.map(|manifest| manifest["digest"].as_str().unwrap().to_owned());
    let mut digests: Vec<String> = digests.collect();
    digests.sort();
    digests
}

fn x_cache(got: &Response) -> &str {
    got.header("X-Cache").unwrap_or_default()
}

fn assert_stale(got: &Response) {
    assert_eq!((got.status, x_cache(got)), (200, "STALE"), "{}", got.text());
    let warning = got.header("Warning").unwrap();
    assert!(warning.starts_with("299 - \""), "{warning}");
}

const HOUR: (&str, &str) = ("CACHE_TAG_TTL", "1h");
const ALWAYS: (&str, &str) = ("CACHE_TAG_TTL", "0s");

#[test]
fn a_list_is_passed_with_its_filter_and_its_pages() {
    for cache in ["", "off"] {
        let quirks = Quirks {
            referrers_page: Some(1),
            ..Quirks::ecr()
        };
        let settings = [("CACHE_DIR", cache)];
        let signed = Signed::with(quirks, if cache.is_empty() { &[] } else { &settings });
        let fields = [("Host", "mirror.example"), ("X-Forwarded-Proto", "https")];
        for (first, expected) in [
            (signed.target(), signed.both()),
            (signed.of_type(SBOM), vec![signed.sbom.manifest.clone()]),
            (signed.of_type("application/other"), vec![]),
        ] {
            let (mut target, mut found) = (first.clone(), Vec::new());
            let mut http = Http::connect(signed.cached.address());
            loop {
                let got = http.request("GET", &target, &fields, b"");
                found.extend(listed(&got));
                let filter = first.contains("artifactType").then_some("artifactType");
                assert_eq!(got.header("OCI-Filters-Applied"), filter);
                let Some(link) = got.header("Link") else {
                    break;
                };
                assert!(
                    link.starts_with("<https://mirror.example/v2/team/app/"),
                    "{link}"
                );
                target = target_of(link.split(['<', '>']).nth(1).unwrap()).to_owned();
            }
            found.sort();
            assert_eq!(found, expected, "{first}");
        }
        let head = signed.cached.head(&signed.target());
        assert_eq!(
            (head.status, head.length, head.header("Content-Type")),
            (200, 0, Some(INDEX))
        );
    }
}

#[test]
fn a_list_is_cached_as_tags_are() {
    let signed = Signed::with(Quirks::ecr(), &[HOUR]);
    signed.pull();
    let got = signed.get(&signed.of_type(SBOM));
    assert_eq!(
        (listed(&got), x_cache(&got)),
        (vec![signed.sbom.manifest.clone()], "MISS")
    );
    let got = signed.get(&signed.target());
    assert_eq!((listed(&got), x_cache(&got)), (signed.both(), "MISS"));
    let calls = signed.calls();
    assert_eq!(calls, 2);
    for _ in 0..2 {
        let got = signed.get(&signed.target());
        assert_eq!((listed(&got), x_cache(&got)), (signed.both(), "HIT"));
    }
    // Filters that upstream was never asked for are applied to the whole list.
    for (kind, expected) in [
        (SIGNATURE, vec![signed.signature.manifest.clone()]),
        ("a/b", vec![]),
    ] {
        let got = signed.get(&signed.of_type(kind));
        assert_eq!((listed(&got), x_cache(&got)), (expected, "HIT"));
        assert_eq!(got.header("OCI-Filters-Applied"), Some("artifactType"));
    }
    assert_eq!(signed.calls(), calls);
    // A push may have added one.
    let more = standin::image::artifact(&signed.image.manifest, "a/b", b"{}");
    let digest = standin::digest(&more);
    let target = format!("/v2/team/app/manifests/{digest}");
    let fields = [("Content-Type", MANIFEST)];
    let put = Http::once(signed.cached.address(), "PUT", &target, &fields, &more);
    assert_eq!(put.status, 201, "{}", put.text());
    let got = signed.get(&signed.target());
    assert_eq!((listed(&got).len(), x_cache(&got)), (3, "MISS"));
}

#[test]
fn a_bad_digest_is_refused_here() {
    let signed = Signed::with(Quirks::ecr(), &[]);
    for digest in ["sha256:abc", "1.0", "md5:00", "sha256%3Aabc", "SHA256:00"] {
        let got = signed.get(&format!("/v2/team/app/referrers/{digest}"));
        let expected = (400, "DIGEST_INVALID".to_owned());
        assert_eq!((got.status, error_of(&got).0), expected, "{digest}");
    }
    assert_eq!(signed.calls(), 0);
}

#[test]
fn a_list_outlives_upstream_and_a_restart() {
    let quirks = Quirks {
        referrers_page: Some(1),
        ..Quirks::ecr()
    };
    for quirks in [Quirks::ecr(), quirks] {
        let paged = quirks.referrers_page.is_some();
        let mut signed = Signed::with(quirks, &[ALWAYS]);
        signed.pull();
        let first = signed.get(&signed.target());
        let next = first
            .header("Link")
            .map(|link| link.split(['<', '>']).nth(1).unwrap());
        let next = next.map(|link| target_of(link).to_owned());
        if let Some(next) = &next {
            listed(&signed.get(next));
        }
        signed.cached.all_down();
        signed.cached.stop();
        signed.cached.start_again();
        let got = signed.get(&signed.target());
        assert_stale(&got);
        assert_eq!(
            (&got.body, got.header("Link").is_some()),
            (&first.body, paged)
        );
        if let Some(next) = next {
            assert_stale(&signed.get(&next));
        }
        // The filter is ours now, over all pages.
        let got = signed.get(&signed.of_type(SBOM));
        assert_stale(&got);
        assert_eq!(listed(&got), [signed.sbom.manifest.clone()]);
        assert_eq!(got.header("OCI-Filters-Applied"), Some("artifactType"));
        assert_eq!(got.header("Link"), None);
        // Nobody knows of others.
        let other = signed
            .target()
            .replace(&signed.image.manifest, &signed.image.config);
        assert!([503, 504].contains(&signed.get(&other).status));
    }
}

#[test]
fn faults_of_upstream_let_an_older_list_stand_in() {
    let mut signed = Signed::with(Quirks::ecr(), &[ALWAYS]);
    signed.pull();
    listed(&signed.get(&signed.target()));
    for fault in [
        Fault::status(500),
        Fault::registry_error(403, "DENIED", "not you"),
        Fault::CutAfter(9),
        // The registry is left alone for a while after this one.
        Fault::TooMany429 { retry_after: None },
    ] {
        signed
            .cached
            .standin
            .fault(Match::registry().path("/referrers/"), fault);
        let got = signed.get(&signed.target());
        assert_stale(&got);
        assert_eq!(listed(&got), signed.both());
    }
    signed.cached.stop();
    signed.cached.start_again();
    let gone = Fault::registry_error(404, "NAME_UNKNOWN", "gone");
    signed
        .cached
        .standin
        .fault(Match::registry().path("/referrers/"), gone);
    let got = signed.get(&signed.target());
    assert_eq!((got.status, error_of(&got).0), (404, "NAME_UNKNOWN".into()));
}

#[test]
fn without_the_api_the_tag_takes_its_place() {
    for status in [404, 405] {
        let quirks = Quirks {
            no_referrers: Some(status),
            ..Quirks::ecr()
        };
        let mut signed = Signed::with(quirks, &[ALWAYS]);
        signed.pull();
        let entries = [("amd64", &*signed.signature.bytes)];
        let tag = signed.tag("");
        signed.cached.standin.add_index("team/app", &tag, &entries);
        let got = signed.get(&signed.target());
        assert_eq!(
            (got.status, got.header("Content-Type")),
            (404, Some("application/json"))
        );
        assert_eq!(error_of(&got).0, "UNSUPPORTED");
        let index = signed.get(&format!("/v2/team/app/manifests/{tag}"));
        assert_eq!(
            (index.status, index.header("Content-Type")),
            (200, Some(INDEX))
        );
        let own = format!("/v2/team/app/manifests/{}", signed.signature.manifest);
        assert_eq!(signed.get(&own).body, signed.signature.bytes);
        // And offline, where a client must be told to look for the tag as before. What is here of
        // referrers is listed none the less.
        signed.cached.all_down();
        signed.cached.stop();
        signed.cached.start_again();
        let other = signed
            .target()
            .replace(&signed.image.manifest, &signed.image.config);
        assert_eq!(signed.get(&other).status, 404);
        assert_eq!(
            signed.get(&format!("/v2/team/app/manifests/{tag}")).body,
            index.body
        );
        assert_eq!(
            listed(&signed.get(&signed.target())),
            [signed.signature.manifest.clone()]
        );
    }
}

/// A 404 that shows nothing of a registry: a load balancer without backends, a gateway.
fn no_answers() -> Vec<Fault> {
    let texts = [
        "404 page not found\n",
        "<html>404</html>",
        r#"{"message":"Not Found"}"#,
        "",
    ];
    let answers = texts.map(|text| Fault::Status(404, Vec::new(), text.as_bytes().to_vec()));
    answers.into_iter().chain([Fault::status(404)]).collect()
}

#[test]
fn bug_a_404_of_a_load_balancer_said_that_there_is_no_api() {
    let mut signed = Signed::with(Quirks::ecr(), &[ALWAYS]);
    let standin = || &signed.cached.standin;
    for fault in no_answers() {
        standin().fault(Match::registry().always(), fault);
        let got = signed.get(&signed.target());
        assert_eq!((got.status, error_of(&got).0), (502, "UNAVAILABLE".into()));
        standin().clear_faults();
    }
    // Nothing of it is remembered, and a list that is known stands in.
    signed.pull();
    assert_eq!(listed(&signed.get(&signed.target())), signed.both());
    for fault in no_answers() {
        standin().fault(Match::registry().always(), fault);
        assert_stale(&signed.get(&signed.target()));
        standin().clear_faults();
    }
    signed.cached.stop();
    signed.cached.start_again_with(&[("CACHE_DIR", "off")]);
    for fault in no_answers() {
        signed
            .cached
            .standin
            .fault(Match::registry().always(), fault);
        assert_eq!(signed.get(&signed.target()).status, 502);
        signed.cached.standin.clear_faults();
    }
}

#[test]
fn a_registry_that_knows_no_such_path_has_no_api() {
    // Docker's registry names itself in every answer; others do so at /v2/ alone.
    let itself = vec![(
        "Docker-Distribution-Api-Version".to_owned(),
        "registry/2.0".to_owned(),
    )];
    let text = b"404 page not found\n".to_vec();
    for settings in [&[ALWAYS][..], &[("CACHE_DIR", "off")]] {
        let signed = Signed::with(Quirks::ecr(), settings);
        for fields in [itself.clone(), Vec::new()] {
            let fault = Fault::Status(404, fields, text.clone());
            let pick = Match::registry().path("/referrers/");
            signed.cached.standin.fault(pick, fault);
            let got = signed.get(&signed.target());
            assert_eq!((got.status, error_of(&got).0), (404, "UNSUPPORTED".into()));
        }
    }
}

#[test]
fn what_the_cache_holds_is_listed_when_nobody_ever_asked() {
    let signed = Signed::with(Quirks::ecr(), &[ALWAYS]);
    signed.pull();
    for artifact in [&signed.signature, &signed.sbom] {
        let target = format!("/v2/team/app/manifests/{}", artifact.manifest);
        assert_eq!(signed.get(&target).body, artifact.bytes);
    }
    let online = signed.calls();
    signed.cached.all_down();
    let got = signed.get(&signed.target());
    assert_stale(&got);
    assert_eq!((listed(&got), online), (signed.both(), 0));
    let list: Value = serde_json::from_slice(&got.body).unwrap();
    let of = |artifact: &Image| {
        let manifests = list["manifests"].as_array().unwrap().iter();
        let mut found = manifests.filter(|one| one["digest"] == *artifact.manifest);
        found.next().unwrap().clone()
    };
    let expected = json!({"mediaType": MANIFEST, "digest": signed.sbom.manifest,
        "size": signed.sbom.bytes.len(), "artifactType": SBOM,
        "annotations": {"org.example": "stand-in"}});
    assert_eq!(of(&signed.sbom), expected);
    let got = signed.get(&signed.of_type(SIGNATURE));
    assert_eq!(
        listed(&got),
        std::slice::from_ref(&signed.signature.manifest)
    );
    // Another image's are none of this one's.
    let other = signed
        .target()
        .replace(&signed.image.manifest, &signed.sbom.manifest);
    assert_eq!(signed.get(&other).status, 504);
}

/// All that a verifier asks for, with everything of AWS gone.
fn assert_verifiable(signed: &Signed) {
    let got = signed.get(&signed.target());
    assert_stale(&got);
    assert_eq!(listed(&got), signed.both());
    for artifact in [&signed.signature, &signed.sbom] {
        let target = format!("/v2/team/app/manifests/{}", artifact.manifest);
        let got = signed.get(&target);
        assert_eq!((x_cache(&got), &got.body), ("HIT", &artifact.bytes));
        for blob in artifact.layers.iter().chain([&artifact.config]) {
            let got = signed.get(&format!("/v2/team/app/blobs/{blob}"));
            assert_eq!((x_cache(&got), &got.digest), ("HIT", blob));
        }
    }
}

#[test]
fn referrers_come_with_the_image() {
    let mut signed = Signed::with(Quirks::ecr(), &[ALWAYS, ("FILL_REFERRERS", "true")]);
    // A signature as cosign's older versions store it, and one of the SBOM.
    let cosign = signed.tag(".sig");
    let standin = &signed.cached.standin;
    let by_tag = standin.put_image("team/app", &cosign, &[Layer::of_files(&[("s", b"sig")])]);
    let deeper = standin.attach("team/app", "sha256:", &signed.sbom.manifest, SIGNATURE);
    // HEAD is enough: clients that check for a new version send no more.
    assert_eq!(signed.cached.head("/v2/team/app/manifests/1.0").status, 200);
    let artifacts = [&signed.signature, &signed.sbom, &by_tag, &deeper];
    for blob in artifacts.iter().flat_map(|artifact| artifact.layers.iter()) {
        signed.cached.wait_for_blob(blob);
    }
    wait_until("both are done", SOON, || {
        signed
            .cached
            .proxy()
            .log()
            .matches("referrers filled")
            .count()
            >= 3
    });
    signed.cached.all_down();
    signed.cached.stop();
    signed.cached.start_again();
    assert_verifiable(&signed);
    let got = signed.get(&format!("/v2/team/app/manifests/{cosign}"));
    assert_eq!((x_cache(&got), &got.body), ("STALE", &by_tag.bytes));
    let deep = signed
        .target()
        .replace(&signed.image.manifest, &signed.sbom.manifest);
    assert_eq!(listed(&signed.get(&deep)), [deeper.manifest]);
}

#[test]
fn referrers_come_with_the_image_where_there_is_no_api() {
    let quirks = Quirks {
        no_referrers: Some(404),
        ..Quirks::ecr()
    };
    let signed = Signed::with(quirks, &[ALWAYS, ("FILL_REFERRERS", "true")]);
    let entries = [("a", &*signed.signature.bytes), ("b", &*signed.sbom.bytes)];
    let tag = signed.tag("");
    let index = signed.cached.standin.add_index("team/app", &tag, &entries);
    signed.pull();
    for artifact in [&signed.signature, &signed.sbom] {
        signed.cached.wait_for_blob(&artifact.layers[0]);
    }
    signed.cached.proxy().wait_for_log("referrers filled");
    signed.cached.all_down();
    assert_verifiable(&signed);
    let got = signed.get(&format!("/v2/team/app/manifests/{tag}"));
    assert_eq!(standin::digest(&got.body), index);
}

#[test]
fn referrers_are_fetched_only_where_that_is_set() {
    let signed = Signed::with(Quirks::ecr(), &[ALWAYS]);
    signed.pull();
    signed.pull();
    assert_eq!(signed.calls(), 0);
    let names = signed.cached.proxy().thread_names();
    assert!(!names.contains(&"referrers".to_owned()));
}

#[test]
fn an_image_with_countless_referrers_fills_no_disk() {
    let signed = Signed::with(Quirks::ecr(), &[HOUR, ("FILL_REFERRERS", "true")]);
    for number in 0..100 {
        let kind = format!("application/vnd.example.{number}");
        let subject = &signed.image.manifest;
        signed
            .cached
            .standin
            .attach("team/app", "sha256:", subject, &kind);
    }
    signed.pull();
    let proxy = signed.cached.proxy();
    // Each of them is synced: a busy disk takes its time.
    proxy.wait_for_log_within("referrers filled", Duration::from_secs(120));
    proxy.wait_for_log("referrers left out");
    let gets = signed
        .cached
        .standin
        .count(Server::Registry, "GET", "/manifests/sha256:");
    assert_eq!(gets, 64);
}

#[test]
fn a_client_waits_for_no_referrers() {
    let signed = Signed::with(Quirks::ecr(), &[ALWAYS, ("FILL_REFERRERS", "true")]);
    signed
        .cached
        .standin
        .fault(Match::registry().path("/referrers/"), Fault::Silent);
    let since = std::time::Instant::now();
    signed.pull();
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    wait_until("they are asked for", SOON, || signed.calls() == 1);
    signed.pull();
    signed.cached.standin.release();
}
