//! What manifests of every kind name, and what hostile ones do not.

use super::*;

fn digest(n: u8) -> String {
    format!("sha256:{}", format!("{n:02x}").repeat(32))
}

fn named(document: &Value) -> Vec<(String, Option<String>)> {
    list_named(document.to_string().as_bytes())
        .into_iter()
        .map(|named| (named.digest.as_str().to_owned(), named.media_type))
        .collect()
}

/// A manifest with more layers than are read, and what comes after them.
fn long(layer: &str, after: &str) -> String {
    let layers: Vec<String> = (0..46_601)
        .map(|n| format!(r#"{{"digest":"sha256:{n:064x}"{layer}}}"#))
        .collect();
    format!(r#"{{"layers":[{}]{after}}}"#, layers.join(","))
}

#[test]
fn bug_a_manifest_of_46_601_digests_named_none() {
    let named = list_named(long(r#","size":1"#, r#","mediaType":"a/b""#).as_bytes());
    assert_eq!(named.len(), DESCRIPTORS_MAX);
    // Its config counts too, wherever it is.
    let config = format!(r#","config":{{"digest":"{}"}}"#, digest(1));
    assert!(!list_named(long("", &config).as_bytes()).is_empty());
}

#[test]
fn what_comes_after_too_many_descriptors_is_not_overlooked() {
    // An image and an index at once, and what is no image by its type.
    for after in [
        r#","manifests":[{"digest":"x"}]"#,
        r#","blobs":[{"digest":"x"}]"#,
        r#","mediaType":"application/vnd.oci.image.index.v1+json""#,
    ] {
        assert_eq!(list_named(long("", after).as_bytes()), [], "{after}");
    }
    // A foreign layer of which only the first fields would fit.
    let foreign = r#","size":1,"urls":["https://elsewhere.example"]"#;
    assert_eq!(list_named(long(foreign, "").as_bytes()), []);
    for fields in 0..7 {
        let fields = (0..fields).map(|n| format!(r#""{}":1,"#, KEYS[n]));
        let first = format!(r#"{{{}"x":1}}"#, fields.collect::<String>());
        let layers = format!(r#"{{"layers":[{first},"#);
        let text = long(foreign, "").replace(r#"{"layers":["#, &layers);
        assert_eq!(list_named(text.as_bytes()), [], "{first}");
    }
}

#[test]
fn bug_a_foreign_layer_opened_another_repositorys_blob() {
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let restricted = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let image = serde_json::json!({"config": {"digest": digest(1)}, "layers": [
        {"digest": digest(2), "urls": ["https://elsewhere.example/layer"]},
        {"urls": [], "digest": digest(3)},
        {"digest": digest(4), "mediaType": foreign},
        {"digest": digest(5), "mediaType": restricted},
        {"digest": digest(6), "urls": null},
    ]});
    assert_eq!(named(&image), [(digest(1), None), (digest(6), None)]);
    let index = serde_json::json!({"manifests": [
        {"digest": digest(2), "urls": ["https://elsewhere.example/"]}]});
    assert_eq!(named(&index), []);
}

#[test]
fn a_document_that_registries_read_differently_names_nothing() {
    let (one, two) = (digest(1), digest(2));
    for text in [
        // Two kinds at once.
        format!(r#"{{"config":{{"digest":"{one}"}},"manifests":[{{"digest":"{two}"}}]}}"#),
        format!(r#"{{"layers":[{{"digest":"{one}"}}],"blobs":[{{"digest":"{two}"}}]}}"#),
        format!(r#"{{"layers":[{{"digest":"{one}"}}],"fsLayers":[{{"blobSum":"{two}"}}]}}"#),
        // A field twice, or in two cases.
        format!(r#"{{"layers":[{{"digest":"{one}"}}],"layers":[{{"digest":"{two}"}}]}}"#),
        format!(r#"{{"layers":[{{"digest":"{one}"}}],"Layers":[{{"digest":"{two}"}}]}}"#),
        format!(r#"{{"Layers":[{{"digest":"{one}"}}]}}"#),
        format!(r#"{{"layers":[{{"digest":"{one}","digest":"{two}"}}]}}"#),
        format!(r#"{{"layers":[{{"digest":"{one}","DIGEST":"{two}"}}]}}"#),
        format!(r#"{{"layers":[{{"digest":"{one}","URLS":["https://x"]}}]}}"#),
        // A media type of another kind.
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json",
                "manifests":[{{"digest":"{one}"}}]}}"#
        ),
        format!(
            r#"{{"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json",
                "layers":[{{"digest":"{one}"}}]}}"#
        ),
    ] {
        assert_eq!(list_named(text.as_bytes()), [], "{text}");
    }
}

#[test]
fn every_kind_of_manifest_is_read() {
    let image = serde_json::json!({
        "config": {"digest": digest(1), "mediaType": "application/json"},
        "layers": [{"digest": digest(2)}, {"digest": digest(3)}, {"digest": digest(2)}],
        "subject": {"digest": digest(9)},
    });
    let plain: Vec<_> = [1, 2, 3].map(|n| (digest(n), None)).into();
    assert_eq!(named(&image), plain);
    let typed = Some("application/vnd.oci.image.manifest.v1+json".to_owned());
    let index = serde_json::json!({"manifests": [
        {"digest": digest(4), "mediaType": typed}, {"digest": digest(5)}]});
    assert_eq!(named(&index), [(digest(4), typed), (digest(5), None)]);
    let old = serde_json::json!({"fsLayers": [{"blobSum": digest(6)}]});
    assert_eq!(named(&old), [(digest(6), None)]);
    let artifact = serde_json::json!({"blobs": [{"digest": digest(7)}]});
    assert_eq!(named(&artifact), [(digest(7), None)]);
}

#[test]
fn a_referrer_is_described_as_registries_do() {
    let (subject, own): (Digest, Digest) = (digest(1).parse().unwrap(), digest(2).parse().unwrap());
    let describe = |document: &Value| {
        let text = document.to_string();
        let size = text.len();
        referrer(text.as_bytes(), &subject, &own, "a/b").map(|found| (found, size))
    };
    let signature = serde_json::json!({"subject": {"digest": digest(1)},
        "artifactType": "sig/x", "config": {"mediaType": "c/d"}, "annotations": {"k": "v"}});
    let (found, size) = describe(&signature).unwrap();
    let expected = serde_json::json!({"mediaType": "a/b", "digest": digest(2), "size": size,
        "artifactType": "sig/x", "annotations": {"k": "v"}});
    assert_eq!(found, expected);
    let by_config = serde_json::json!({"subject": {"digest": digest(1)},
        "artifactType": "", "config": {"mediaType": "c/d"}});
    assert_eq!(describe(&by_config).unwrap().0["artifactType"], "c/d");
    for other in [
        serde_json::json!({"subject": {"digest": digest(3)}}),
        serde_json::json!({"subject": null}),
        serde_json::json!({"config": {}}),
        serde_json::json!([]),
    ] {
        assert_eq!(describe(&other), None, "{other}");
    }
}

#[test]
fn the_length_is_the_descriptors() {
    let image = json!({"config": {"digest": digest(1), "size": 7},
        "layers": [{"digest": digest(2), "size": "8"}, {"digest": digest(3)}]});
    let sizes = list_named(image.to_string().as_bytes());
    let sizes: Vec<_> = sizes.iter().map(|named| named.size).collect();
    assert_eq!(sizes, [Some(7), None, None]);
}

#[test]
fn what_a_manifest_can_name_is_bounded() {
    let layers: Vec<Value> = (0..DESCRIPTORS_MAX + 10)
        .map(|n| json!({"digest": format!("sha256:{n:064x}"), "size": n, "mediaType": "a/b"}))
        .collect();
    let image = json!({"layers": layers}).to_string();
    assert_eq!(list_named(image.as_bytes()).len(), DESCRIPTORS_MAX);
}

/// Values kept, also those inside others.
fn count(kept: &Kept) -> usize {
    1 + match kept {
        Kept::List(list) => list.iter().map(count).sum(),
        Kept::Object(fields) => fields.iter().map(|(_, value)| count(value)).sum(),
        Kept::Annotations(annotations) => annotations.len(),
        Kept::Text(_) | Kept::Number(_) | Kept::Other | Kept::Null | Kept::Skipped => 0,
    }
}

#[test]
fn a_manifest_of_millions_of_values_keeps_few() {
    let many = |value: &str| format!("{value},").repeat(500_000) + value;
    let inner = format!("[{}]", many(r#"{"size":0}"#));
    for list in [
        many("0"),
        many("{}"),
        many("[]"),
        many("\"a\""),
        many(r#"{"size":0}"#),
        many(r#"{"config":{"config":{}}}"#),
        inner,
    ] {
        let text = format!(r#"{{"layers":[{list}],"mediaType":"a/b"}}"#);
        let kept = count(&read(text.as_bytes()));
        assert!(kept <= 2 * FIELDS_MAX + 2, "{kept}");
    }
    let long = format!(r#"{{"mediaType":"{}"}}"#, "a".repeat(TEXT_BYTES_MAX + 1));
    assert_eq!(read(long.as_bytes()).text("mediaType"), None);
    let pairs: Vec<String> = (0..9_999).map(|n| format!(r#""{n}":"v""#)).collect();
    let text = format!(r#"{{"annotations":{{{}}}}}"#, pairs.join(","));
    assert_eq!(count(&read(text.as_bytes())), 2 + ANNOTATIONS_MAX);
}

#[test]
fn a_field_that_readers_take_differently_is_refused() {
    let first = format!(r#""layers":[{{"digest":"{}"}}]"#, digest(1));
    let other = first.replace("layers", "Layers");
    assert_eq!(list_named(format!("{{{first}}}").as_bytes()).len(), 1);
    for text in [
        format!("{{{first},{first}}}"),
        format!("{{{first},{other}}}"),
    ] {
        assert_eq!(list_named(text.as_bytes()), [], "{text}");
    }
    // Names that are not read may be there as they like.
    let unread = format!(r#"{{"a":1,"A":2,"a":3,{first}}}"#);
    assert_eq!(list_named(unread.as_bytes()).len(), 1);
}

#[test]
fn what_is_no_manifest_names_nothing() {
    for text in ["", "{", "[]", "null", "7", r#"{"layers":{"digest":1}}"#] {
        assert_eq!(list_named(text.as_bytes()), [], "{text}");
    }
    let hostile = serde_json::json!({"config": "x", "layers": [1, {"digest": "sha256:../.."},
        {"digest": 5}, {}], "manifests": [{"digest": "md5:00"}]});
    assert_eq!(named(&hostile), []);
    let deep = "[".repeat(100_000);
    assert_eq!(list_named(deep.as_bytes()), []);
}

#[test]
fn the_platform_and_the_subject_are_read() {
    let child = |n: u8, platform: Value| json!({"digest": digest(n), "platform": platform});
    let index = json!({
        "manifests": [
            child(1, json!({"os": "linux", "architecture": "arm64", "variant": "v8"})),
            child(2, json!({"os": "linux", "architecture": "amd64", "variant": ""})),
            child(3, json!({"os": "linux"})),
            // Somebody's own fields are no fault.
            child(4, json!({"OS": "l", "Variant": "x", "os": "a", "architecture": "b"})),
            child(5, json!({"os": "l".repeat(99), "architecture": "b"})),
        ],
        "subject": {"digest": digest(9)},
    });
    let content = ManifestContent::read(index.to_string().as_bytes());
    let platforms = content.named.iter().map(|named| named.platform.as_deref());
    let expected = ["linux/arm64/v8", "linux/amd64", "", "a/b", ""];
    let found: Vec<_> = platforms.map(Option::unwrap_or_default).collect();
    assert_eq!(found, expected);
    assert_eq!(content.named.len(), 5);
    assert!(content.is_index && content.config.is_none());
    assert_eq!(content.subject, digest(9).parse().ok());
    let config = json!({"os": "linux", "architecture": "amd64", "config": {"Env": []}});
    let platform = platform_of_config(config.to_string().as_bytes());
    assert_eq!(platform.as_deref(), Some("linux/amd64"));
    assert_eq!(platform_of_config(b"{}"), None);
}
