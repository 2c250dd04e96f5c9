//! Tests of layouts as they come from elsewhere.

use serde_json::json;

use super::*;
use crate::cache::scratch::{Scratch, digest_of};

fn open_tar(scratch: &Scratch, files: &[(&str, &[u8])]) -> Result<Archive, String> {
    let path = scratch.path().join("x.tar");
    let mut bytes = Vec::new();
    for (name, content) in files {
        bytes.extend(headers(name, content.len() as u64));
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len() + padding(content.len() as u64), 0);
    }
    bytes.extend(END);
    fs::write(&path, bytes).unwrap();
    Archive::open(&path)
}

const MARKER: (&str, &[u8]) = ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);

fn index(descriptor: &Value) -> Vec<u8> {
    json!({"manifests": [descriptor]}).to_string().into_bytes()
}

#[test]
fn a_tar_is_read_where_its_blobs_are() {
    let digest = digest_of(b"content");
    let name = blob_name(&digest);
    let descriptor = json!({"digest": digest.as_str(), "mediaType": "a/b",
        "annotations": {REF_NAME: "v1", CONTAINERD_NAME: "r.test/app:v1"}});
    let index = index(&descriptor);
    let scratch = Scratch::new();
    let files = [
        (name.as_str(), &b"content"[..]),
        ("index.json", &index),
        MARKER,
        ("manifest.json", b"of docker"),
    ];
    let archive = open_tar(&scratch, &files);
    let archive = archive.unwrap();
    assert_eq!(archive.images[0].name.as_deref(), Some("r.test/app:v1"));
    assert_eq!(archive.export, None);
    assert_eq!(archive.manifest(&digest, 7).unwrap().unwrap(), b"content");
    assert!(
        archive
            .manifest(&digest, 6)
            .unwrap_err()
            .contains("at most 6 are read")
    );
    assert!(archive.blob(&digest_of(b"other")).unwrap().is_none());
}

#[test]
fn what_is_no_layout_is_refused_by_name() {
    let digest = digest_of(b"x");
    let good = index(&json!({"digest": digest.as_str(), "mediaType": "a/b"}));
    let huge = b" ".repeat(usize::try_from(INDEX_BYTES_MAX + 1).unwrap());
    let odd_digest = index(&json!({"digest": "md5:00", "mediaType": "a/b"}));
    let no_type = index(&json!({"digest": digest.as_str()}));
    let odd_type = index(&json!({"digest": digest.as_str(), "mediaType": "a/b\r\nX: y"}));
    let short = format!("blobs/sha256/{}", "a".repeat(63));
    for (files, why) in [
        (vec![], "oci-layout is not in it"),
        (vec![("manifest.json", &b"[]"[..])], "old `docker save`"),
        (vec![("oci-layout", b"{}")], "oci-layout: names no version"),
        (vec![MARKER], "index.json is not in it"),
        (vec![MARKER, ("index.json", b"[")], "index.json: EOF"),
        (
            vec![MARKER, ("index.json", b"{}")],
            "index.json: has no list",
        ),
        (
            vec![MARKER, ("index.json", &huge)],
            "index.json: has 4194305 bytes",
        ),
        (
            vec![MARKER, ("index.json", &odd_digest)],
            "index.json: digest \"md5:00\"",
        ),
        (vec![MARKER, ("index.json", &no_type)], "has no mediaType"),
        (vec![MARKER, ("index.json", &odd_type)], "has no mediaType"),
        (
            vec![MARKER, ("index.json", &good), ("blobs/md5/00", b"")],
            "\"blobs/md5/00\": is no name",
        ),
        (
            vec![MARKER, ("index.json", &good), (&short, b"")],
            "is no name of a blob",
        ),
        (
            vec![MARKER, ("index.json", &good), ("blobs/x", b"")],
            "\"blobs/x\": is no name",
        ),
    ] {
        let fault = open_tar(&Scratch::new(), &files).unwrap_err();
        assert!(fault.contains(why), "{why}: {fault}");
    }
}

#[test]
fn a_compressed_archive_is_refused_with_the_remedy() {
    let scratch = Scratch::new();
    let path = scratch.path().join("x.tar.gz");
    fs::write(&path, b"\x1f\x8b\x08\0".repeat(300)).unwrap();
    let fault = Archive::open(&path).unwrap_err();
    assert!(
        fault.contains("unpack it first, as with `gunzip`"),
        "{fault}"
    );
    fs::write(&path, b"").unwrap();
    assert!(
        Archive::open(&path)
            .unwrap_err()
            .contains("cut off after the beginning")
    );
    assert!(
        Archive::open(Path::new("/dev/zero"))
            .unwrap_err()
            .contains("expected a directory")
    );
}

#[test]
fn a_directory_is_read_without_following_links() {
    let scratch = Scratch::new();
    let path = scratch.path().join("layout");
    let digest = digest_of(b"content");
    fs::create_dir_all(path.join("blobs/sha256")).unwrap();
    let fault = Archive::open(&path).unwrap_err();
    assert!(
        fault.contains("oci-layout is not in it: expected an OCI image layout"),
        "{fault}"
    );
    fs::write(path.join("oci-layout"), MARKER.1).unwrap();
    let descriptor = json!({"digest": digest.as_str(), "mediaType": "a/b"});
    fs::write(path.join("index.json"), index(&descriptor)).unwrap();
    let archive = Archive::open(&path).unwrap();
    assert!(archive.manifest(&digest, 10).unwrap().is_none());
    let blob = path.join(blob_name(&digest));
    fs::write(&blob, b"another").unwrap();
    assert!(
        archive
            .manifest(&digest, 10)
            .unwrap_err()
            .contains("another digest")
    );
    fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &blob).unwrap();
    let fault = archive.manifest(&digest, 10).unwrap_err();
    assert!(
        fault.contains(digest.hex()) && fault.contains("is no regular file"),
        "{fault}"
    );
}
