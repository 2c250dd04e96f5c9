//! Bytes of blobs. Owns: [`Content`], which reads at any offset, and SHA-256 helpers. Must not:
//! know of repositories or HTTP.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

/// The bytes of a blob: in memory, or made on the fly, so that 300 MB cost nothing.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory.
    Bytes(Arc<Vec<u8>>),
    /// A pseudo-random stream that is the same for the same seed, and does not compress.
    Generated {
        /// Bytes in all.
        size: u64,
        /// Picks the stream.
        seed: u64,
    },
}

impl Content {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Generated { size, .. } => *size,
        }
    }

    /// True without a byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from `offset` on and says how many bytes there were.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> usize {
        let left = usize::try_from(self.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = left.min(buf.len());
        let buf = &mut buf[..count];
        match self {
            Self::Bytes(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                if count > 0 {
                    buf.copy_from_slice(&bytes[start..start + count]);
                }
            }
            Self::Generated { seed, .. } => generate(*seed, offset, buf),
        }
        count
    }

    /// A reader from the first byte to the last.
    pub fn reader(&self) -> impl Read + use<> {
        ContentReader {
            content: self.clone(),
            offset: 0,
        }
    }

    /// All bytes, in memory.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.len()).expect("content fits into memory")];
        self.read_at(0, &mut bytes);
        bytes
    }

    /// `sha256:…` of all bytes.
    pub fn digest(&self) -> String {
        match self {
            Self::Bytes(bytes) => digest(bytes),
            Self::Generated { .. } => {
                let mut hasher = Sha256::new();
                let (mut buf, mut offset) = (vec![0; 256 * 1024], 0);
                loop {
                    let count = self.read_at(offset, &mut buf);
                    if count == 0 {
                        return format!("sha256:{}", hex(&hasher.finalize()));
                    }
                    hasher.update(&buf[..count]);
                    offset += count as u64;
                }
            }
        }
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(Arc::new(bytes))
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

struct ContentReader {
    content: Content,
    offset: u64,
}

impl Read for ContentReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read_at(self.offset, buf);
        self.offset += count as u64;
        Ok(count)
    }
}

/// Hashes what is fed to it: for bodies that need not be kept.
#[derive(Default)]
pub struct Hasher(Sha256, u64);

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
        self.1 += bytes.len() as u64;
    }

    /// Bytes taken so far.
    pub const fn len(&self) -> u64 {
        self.1
    }

    /// True before the first byte.
    pub const fn is_empty(&self) -> bool {
        self.1 == 0
    }

    /// `sha256:…` of all bytes taken.
    pub fn digest(self) -> String {
        format!("sha256:{}", hex(&self.0.finalize()))
    }
}

/// `sha256:…` of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&sha256(bytes)))
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// SplitMix64 as a function of position, so that any offset is reached at once.
fn generate(seed: u64, offset: u64, buf: &mut [u8]) {
    let word = |index: u64| {
        let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let skip = usize::try_from(offset % 8).unwrap();
    let head = ((8 - skip) % 8).min(buf.len());
    let (first, rest) = buf.split_at_mut(head);
    first.copy_from_slice(&word(offset / 8)[8 - (8 - skip) % 8..][..head]);
    for (index, piece) in ((offset + head as u64) / 8..).zip(rest.chunks_mut(8)) {
        piece.copy_from_slice(&word(index)[..piece.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_content_is_the_same_from_any_offset() {
        let content = Content::Generated { size: 50, seed: 7 };
        let whole = content.to_vec();
        for offset in 0..=50_usize {
            for length in [1, 3, 8, 9, 60] {
                let mut part = vec![0; length];
                let count = content.read_at(offset as u64, &mut part);
                assert_eq!(count, length.min(50 - offset));
                assert_eq!(part[..count], whole[offset..offset + count], "{offset}");
            }
        }
        assert_eq!(content.digest(), digest(&whole));
        assert_ne!(whole, Content::Generated { size: 50, seed: 8 }.to_vec());
    }

    #[test]
    fn digests_are_those_of_the_standard() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest(b""), empty);
        assert_eq!(Hasher::default().digest(), empty);
    }
}
