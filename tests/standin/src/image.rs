//! Small real images. Owns: tar, gzip (stored blocks), configs, manifests, indexes. Must not: know
//! of a registry.

use serde_json::{Value, json};

use crate::content::{Content, digest};

/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an image's configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer: tar and gzip.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Media type of a layer: tar.
pub const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer and what a configuration says of it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The blob.
    pub content: Content,
    /// [`LAYER_GZIP`] or [`LAYER_TAR`].
    pub media_type: &'static str,
    /// Digest of the layer without its compression.
    pub diff_id: String,
}

impl Layer {
    /// A real layer: a gzipped tar with these files.
    pub fn of_files(files: &[(&str, &[u8])]) -> Self {
        let tar = tar(files);
        Self {
            diff_id: digest(&tar),
            content: gzip(&tar).into(),
            media_type: LAYER_GZIP,
        }
    }

    /// Noise of that size, made on the fly: for transfers, not for unpacking.
    pub fn of_noise(size: u64, seed: u64) -> Self {
        let content = Content::Generated { size, seed };
        Self {
            diff_id: content.digest(),
            content,
            media_type: LAYER_TAR,
        }
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": self.content.digest(),
            "size": self.content.len(),
        })
    }
}

/// The configuration of an image for `architecture`.
pub fn config(architecture: &str, layers: &[Layer]) -> Vec<u8> {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = json!({
        "created": "2026-01-01T00:00:00Z",
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/hello"], "Env": ["PATH=/"], "Labels": {"org.example": "stand-in"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": layers.iter().map(|_| json!({"created_by": "stand-in"})).collect::<Vec<_>>(),
    });
    config.to_string().into_bytes()
}

/// The manifest over `config` and `layers`.
pub fn manifest(config: &[u8], layers: &[Layer]) -> Vec<u8> {
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": digest(config), "size": config.len()},
        "layers": layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}

/// The manifest of an artifact that refers to `subject` (image-spec "Guidelines for Artifact
/// Usage"), with one blob.
pub fn artifact(subject: &str, artifact_type: &str, payload: &[u8]) -> Vec<u8> {
    let empty = b"{}";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(empty),
            "size": empty.len()},
        "layers": [{"mediaType": "application/octet-stream", "digest": digest(payload),
            "size": payload.len()}],
        "subject": {"mediaType": MANIFEST, "digest": subject, "size": 1},
        "annotations": {"org.example": "stand-in"},
    });
    manifest.to_string().into_bytes()
}

/// The index over manifests, each with its architecture.
pub fn index(manifests: &[(&str, &[u8])]) -> Vec<u8> {
    let entry = |(architecture, bytes): &(&str, &[u8])| {
        json!({
            "mediaType": MANIFEST,
            "digest": digest(bytes),
            "size": bytes.len(),
            "platform": {"architecture": architecture, "os": "linux"},
        })
    };
    let manifests: Vec<Value> = manifests.iter().map(entry).collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    index.to_string().into_bytes()
}

/// A tar (POSIX ustar) of regular, executable files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, contents) in files {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, name);
        put(100, "0000755\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", contents.len()));
        put(136, "00000000000\0");
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(contents);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// Gzip (RFC 1952) of stored blocks (RFC 1951 §3.2.4): no compression, no dependency.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let blocks = bytes.chunks(0xffff);
    let last = blocks.len().saturating_sub(1);
    for (number, block) in blocks.enumerate() {
        let length = u16::try_from(block.len()).expect("a block has 16 bits of length");
        out.push(u8::from(number == last));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
    if bytes.is_empty() {
        out.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    }
    let length = u32::try_from(bytes.len()).expect("layers made here are small");
    out.extend_from_slice(&crc32(bytes).to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out
}

/// CRC-32 (RFC 1952 §8).
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
        })
    };
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_and_gzip_are_those_of_the_rfcs() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let zipped = gzip(b"abc");
        assert_eq!(zipped[10..15], [1, 3, 0, 0xfc, 0xff]);
        assert_eq!(zipped.len(), 10 + 5 + 3 + 8);
        let long = gzip(&[7; 70_000]);
        assert_eq!((long[10], long[10 + 5 + 0xffff]), (0, 1));
    }

    #[test]
    fn a_tar_is_whole_blocks_with_a_right_sum() {
        let tar = tar(&[("hello", b"hi")]);
        assert_eq!(tar.len(), 512 + 512 + 1024);
        let spaced: u32 = tar[..148]
            .iter()
            .chain(&tar[156..512])
            .map(|b| u32::from(*b))
            .sum();
        let sum = std::str::from_utf8(&tar[148..154]).unwrap();
        assert_eq!(u32::from_str_radix(sum, 8).unwrap(), spaced + 8 * 32);
    }
}
