//! Digests of content. Owns: hashing with ring. Must not: do I/O.

use ring::digest::{Context, SHA256, SHA512};

use crate::oci::Digest;

/// The registered algorithms; each has a folder in `blobs/` and in `partial/`.
pub const ALGORITHMS: [&str; 2] = ["sha256", "sha512"];

/// Hashes content piece by piece with the algorithm of the digest it should have.
#[derive(Clone)]
pub struct Hasher {
    algorithm: &'static str,
    context: Context,
}

impl Hasher {
    /// A hasher for content that should have `digest`.
    pub fn new(digest: &Digest) -> Self {
        let (algorithm, function) = match digest.algorithm() {
            "sha512" => ("sha512", &SHA512),
            _ => ("sha256", &SHA256),
        };
        Self {
            algorithm,
            context: Context::new(function),
        }
    }

    /// A hasher for content whose digest is not known yet.
    pub fn sha256() -> Self {
        Self {
            algorithm: "sha256",
            context: Context::new(&SHA256),
        }
    }

    /// Takes in the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// `algorithm:hex` of all pieces.
    pub fn finish(self) -> String {
        let hash = self.context.finish();
        with_hex(&[self.algorithm, ":"].concat(), hash.as_ref())
    }
}

/// The SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> Vec<u8> {
    ring::digest::digest(&SHA256, bytes).as_ref().to_vec()
}

/// The hex digits of the SHA-256 of `bytes`.
pub fn sha256_hex(bytes: &[u8]) -> String {
    with_hex("", ring::digest::digest(&SHA256, bytes).as_ref())
}

/// True when `bytes` have `digest`.
pub fn matches(digest: &Digest, bytes: &[u8]) -> bool {
    let mut hasher = Hasher::new(digest);
    hasher.update(bytes);
    hex_digits(hasher.context.finish().as_ref()).eq(digest.hex().chars())
}

fn with_hex(prefix: &str, bytes: &[u8]) -> String {
    let mut text = String::with_capacity(prefix.len() + 2 * bytes.len());
    text.push_str(prefix);
    text.extend(hex_digits(bytes));
    text
}

fn hex_digits(bytes: &[u8]) -> impl Iterator<Item = char> {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_algorithms_hash_in_pieces() {
        // FIPS 180-4, examples for "abc".
        let short = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let long = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                    2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        for text in [short, long] {
            let digest: Digest = text.parse().unwrap();
            let mut hasher = Hasher::new(&digest);
            hasher.update(b"a");
            hasher.update(b"bc");
            assert_eq!(hasher.finish(), text);
            assert!(matches(&digest, b"abc"));
            assert!(!matches(&digest, b"abd"));
        }
        assert_eq!(format!("sha256:{}", sha256_hex(b"abc")), short);
    }
}
