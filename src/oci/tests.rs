//! Tests of names, routes and documents: the specification's own, and hostile ones.

use super::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn code(path: &str) -> ErrorCode {
    Route::parse(path).unwrap_err().code
}

#[test]
fn routes_of_the_specification() {
    let name = |text: &str| text.parse::<Repository>().unwrap();
    let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
    let tag = Reference::Tag("1.0".parse().unwrap());
    let manifest = format!("/v2/a/manifests/sha256:{HEX}");
    let table = [
        ("/v2", Route::Base),
        ("/v2/", Route::Base),
        ("/v2/_catalog", Route::Catalog),
        ("/v2/a/b/tags/list", Route::Tags(name("a/b"))),
        ("/v2/tags/list/tags/list", Route::Tags(name("tags/list"))),
        ("/v2/a/manifests/1.0", Route::Manifest(name("a"), tag)),
        (
            &manifest,
            Route::Manifest(name("a"), Reference::Digest(digest.clone())),
        ),
        (
            &format!("/v2/a/blobs/sha256:{HEX}"),
            Route::Blob(name("a"), digest.clone()),
        ),
        (
            &format!("/v2/a/referrers/sha256:{HEX}"),
            Route::Referrers(name("a"), digest),
        ),
        ("/v2/a/blobs/uploads/", Route::Uploads(name("a"))),
        ("/v2/a/blobs/uploads", Route::Uploads(name("a"))),
        (
            "/v2/blobs/uploads/x/blobs/uploads/",
            Route::Uploads(name("blobs/uploads/x")),
        ),
        ("/v2/a/blobs/uploads/0f-1_~=", Route::Upload(name("a"))),
    ];
    for (path, route) in table {
        assert_eq!(Route::parse(path).as_ref(), Ok(&route), "{path}");
    }
}

#[test]
fn wrong_parts_and_wrong_paths_are_told_apart() {
    assert_eq!(code("/v2/A/tags/list"), ErrorCode::NameInvalid);
    assert_eq!(code("/v2//tags/list"), ErrorCode::NameInvalid);
    assert_eq!(code("/v2/a/../b/tags/list"), ErrorCode::NameInvalid);
    assert_eq!(code("/v2/a%2fb/tags/list"), ErrorCode::NameInvalid);
    assert_eq!(code("/v2/a/manifests/-x"), ErrorCode::TagInvalid);
    assert_eq!(code("/v2/a/manifests/sha256:12"), ErrorCode::DigestInvalid);
    assert_eq!(
        code(&format!("/v2/a/blobs/md5:{HEX}")),
        ErrorCode::DigestInvalid
    );
    assert_eq!(
        code(&format!("/v2/a/blobs/sha256:{}", HEX.to_uppercase())),
        ErrorCode::DigestInvalid
    );
    for path in [
        "/",
        "/v1/",
        "/v2x",
        "/v2/a",
        "/v2/a/b",
        "/v2/a/blob/x",
        "/v2/a/blobs/uploads/..",
        "/v2/a/blobs/uploads/...",
        "/v2/a/blobs/uploads/..;x",
        "/v2/a/blobs/uploads/1;x/y",
    ] {
        assert_eq!(code(path), ErrorCode::NotFound, "{path}");
    }
}

#[test]
fn repository_names() {
    for good in [
        "a",
        "a/b",
        "a.b",
        "a_b",
        "a__b",
        "a-b",
        "a---b",
        "0/9",
        "team-a/app.x/y_z",
    ] {
        assert!(good.parse::<Repository>().is_ok(), "{good}");
    }
    for bad in [
        "", "/", "a/", "/a", "a//b", "a..b", "a___b", "a.-b", "-a", "a-", "A", "a b", "é",
    ] {
        assert!(bad.parse::<Repository>().is_err(), "{bad}");
    }
    assert!(
        "a".repeat(REPOSITORY_LENGTH_MAX)
            .parse::<Repository>()
            .is_ok()
    );
    assert!(
        "a".repeat(REPOSITORY_LENGTH_MAX + 1)
            .parse::<Repository>()
            .is_err()
    );
}

#[test]
fn tags_up_to_their_limit() {
    assert!("a".repeat(TAG_LENGTH_MAX).parse::<Tag>().is_ok());
    assert!("a".repeat(TAG_LENGTH_MAX + 1).parse::<Tag>().is_err());
    assert!("_v1.0-rc".parse::<Tag>().is_ok());
    assert!(".v1".parse::<Tag>().is_err());
}

#[test]
fn registries() {
    let registry = |text: &str| text.parse::<Registry>();
    let ecr = registry("123456789012.dkr.ECR.eu-west-1.amazonaws.com").unwrap();
    assert_eq!(
        ecr.url(),
        "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com"
    );
    let local = registry("http://127.0.0.1:5000/").unwrap();
    assert_eq!((local.scheme(), local.host()), (Scheme::Http, "127.0.0.1"));
    assert_eq!(registry("http://[::1]:80").unwrap().host(), "[::1]");
    for bad in [
        "", "ftp://a", "a/b", "a:0", "a:99999", "u@h", "a b", "http://", "[::1", "a?b",
    ] {
        assert!(registry(bad).is_err(), "{bad}");
    }
}

#[test]
fn error_documents_are_json() {
    let error = OciError::new(ErrorCode::NameInvalid, "a \"quoted\" name");
    let document: serde_json::Value = serde_json::from_str(&error.document()).unwrap();
    assert_eq!(document["errors"][0]["code"], "NAME_INVALID");
    assert_eq!(document["errors"][0]["message"], "a \"quoted\" name");
}

/// A path put together from what hostile ones are made of; the same for the same `seed`.
fn odd_path(mut seed: u64) -> String {
    const PARTS: [&str; 24] = [
        "/",
        "/v2/",
        "v2",
        "..",
        ".",
        "a",
        "a/b",
        "%2e%2e",
        "%2F",
        "\\",
        "_",
        "-",
        "A",
        "é",
        "\0",
        "blobs",
        "/blobs/uploads/",
        "manifests",
        "tags/list",
        "referrers",
        ":",
        "sha256:",
        "_tags",
        "1.0",
    ];
    let mut path = String::from("/v2/");
    for _ in 0..1 + seed % 9 {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let part = usize::try_from((seed >> 33) % 26).unwrap();
        path.push_str(PARTS.get(part).copied().unwrap_or(HEX));
        if seed >> 62 == 0 {
            path.push('/');
        }
    }
    path
}

#[test]
fn no_odd_path_yields_a_name_that_could_leave_its_folder() {
    let mut accepted = 0;
    for seed in 0..200_000 {
        let path = odd_path(seed);
        let Ok(route) = Route::parse(&path) else {
            continue;
        };
        accepted += 1;
        let repository = match &route {
            Route::Base | Route::Catalog => continue,
            Route::Blob(repository, digest) | Route::Referrers(repository, digest) => {
                assert!(
                    digest.hex().bytes().all(|b| b.is_ascii_hexdigit()),
                    "{path}"
                );
                repository
            }
            Route::Manifest(repository, Reference::Tag(tag)) => {
                let safe = !tag.as_str().starts_with('.') && !tag.as_str().contains('/');
                assert!(safe, "{path}");
                repository
            }
            Route::Manifest(repository, Reference::Digest(_))
            | Route::Tags(repository)
            | Route::Upload(repository)
            | Route::Uploads(repository) => repository,
        };
        for part in repository.as_str().split('/') {
            let first = part.bytes().next().unwrap();
            assert!(
                first.is_ascii_lowercase() || first.is_ascii_digit(),
                "{path}"
            );
            assert!(!part.contains(['%', '\\', '\0']) && part != "..", "{path}");
        }
    }
    assert!(
        accepted > 1000,
        "{accepted} paths were accepted: too few to show anything"
    );
}

#[test]
fn metrics_read_paths_as_we_do() {
    use crate::metrics;
    let mut seen = std::collections::HashSet::new();
    let mut agree = |path: &str| {
        let Ok(route) = Route::parse(path) else {
            return;
        };
        let expected = match route {
            Route::Base => metrics::Route::Base,
            Route::Blob(..) => metrics::Route::Blob,
            Route::Catalog => metrics::Route::Catalog,
            Route::Manifest(..) => metrics::Route::Manifest,
            Route::Referrers(..) => metrics::Route::Referrers,
            Route::Tags(_) => metrics::Route::Tags,
            Route::Upload(_) | Route::Uploads(_) => metrics::Route::Upload,
        };
        assert_eq!(metrics::Route::of(path), expected, "{path}");
        seen.insert(expected.name());
    };
    let digest = format!("sha256:{}", "a".repeat(64));
    for path in [
        "/v2",
        "/v2/",
        "/v2/_catalog",
        "/v2/a/tags/list",
        "/v2/a/blobs/uploads",
    ] {
        agree(path);
    }
    agree(&format!("/v2/a/referrers/{digest}"));
    agree(&format!("/v2/a/blobs/{digest}"));
    agree(&format!("/v2/blobs/uploads/manifests/{digest}"));
    (0..200_000).for_each(|seed| agree(&odd_path(seed)));
    assert_eq!(seen.len(), 7, "{seen:?}");
}
