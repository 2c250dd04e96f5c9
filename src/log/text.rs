//! Texts of lines. Owns: cutting and quoting them. Must not: know what they say.

/// Cuts `text`, so that it says that there was more.
pub(super) fn shorten(text: &mut String, bytes_max: usize) {
    let kept = cut(text, bytes_max).len();
    if kept < text.len() {
        text.truncate(kept);
        text.push('…');
    }
}

/// The beginning of `text`: at most so many bytes, and whole characters.
pub(super) fn cut(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max))
        .unwrap_or_default()
}

/// A JSON string. The text format quotes in the same way, so that no value can forge a line.
pub(super) fn quote(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}
