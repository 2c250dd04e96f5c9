//! The format of the shared credentials and config files. Owns: lines, sections, keys and their
//! values. Must not: know what a section or key means, or show a value in an error.
//!
//! The rules are those of the AWS command line (Python's `configparser`), with the extras of the
//! SDKs (SDKs and Tools reference guide, "Format of the config and credentials files"): comments
//! after values, and sections that stand twice. A bad line spoils its section, not the file.

use std::collections::HashMap;

use crate::secret::Secret;

/// The keys of a section, in lower case, with their values.
pub(super) type Properties = HashMap<String, Secret<String>>;

/// Most sections of a file; people have dozens, generated files hundreds.
const SECTIONS_MAX: usize = 10_000;

/// The part of a file below one header.
#[derive(Debug, Clone, Default)]
pub(super) struct Section {
    pub(super) properties: Properties,
    /// The first line that is wrong in it.
    pub(super) fault: Option<String>,
}

/// A file: the text between the brackets and the section, in order.
#[derive(Debug, Default)]
pub(super) struct Sections {
    pub(super) sections: Vec<(String, Section)>,
    /// The first line that is wrong and in no section.
    pub(super) fault: Option<String>,
}

/// Reads a file. Sections of one name are one section, and of two values of a key the later one
/// holds. Faults name the line, without its content.
///
/// # Errors
/// Too many sections.
pub(super) fn parse(text: &str) -> Result<Sections, String> {
    // Line ends of every system; Python reads them so.
    let text = text.replace("\r\n", "\n");
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut found = Sections::default();
    let mut places: HashMap<String, usize> = HashMap::new();
    // The place of the next line: a section, and a key in it with its indentation.
    let mut place: Option<usize> = None;
    let mut key: Option<(String, usize)> = None;
    for (number, line) in text.split(['\n', '\r']).enumerate() {
        let fault = |what: &str| format!("line {}: {what}", number + 1);
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with(['#', ';']) {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let section = place.and_then(|at| found.sections.get_mut(at));
        if let (Some((_, section)), Some((key, key_indent))) = (section, &key)
            && indent > *key_indent
        {
            if let Some(value) = section.properties.get_mut(key) {
                *value = Secret::new(format!("{}\n{}", value.expose(), strip_comment(bare)));
            }
            continue;
        }
        if let Some(name) = header(bare) {
            if found.sections.len() >= SECTIONS_MAX {
                return Err(fault(&format!("more than {SECTIONS_MAX} sections")));
            }
            let at = *places
                .entry(name.to_owned())
                .or_insert(found.sections.len());
            if at == found.sections.len() {
                found.sections.push((name.to_owned(), Section::default()));
            }
            (place, key) = (Some(at), None);
            continue;
        }
        if bare.starts_with('[') {
            // A section without a name: its lines belong to nobody.
            (place, key) = (None, None);
            found.fault.get_or_insert_with(|| fault("expected [name]"));
            continue;
        }
        let Some((_, section)) = place.and_then(|at| found.sections.get_mut(at)) else {
            let stray = || fault("expected [name] before any key");
            found.fault.get_or_insert_with(stray);
            continue;
        };
        key = property(bare).map(|(name, value)| {
            let value = Secret::new(value.to_owned());
            section.properties.insert(name.clone(), value);
            (name, indent)
        });
        if key.is_none() {
            let bad = || fault("expected key = value");
            section.fault.get_or_insert_with(bad);
        }
    }
    Ok(found)
}

/// The value of a key that stands indented below another one, in the other's `value`.
pub(super) fn find_nested<'a>(value: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = value.lines().rev();
    lines.find_map(|line| {
        let (name, value) = line.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case(key)
            .then_some(value.trim())
    })
}

/// The name in `[name]`; text after it is a comment.
fn header(line: &str) -> Option<&str> {
    let (name, _) = line.strip_prefix('[')?.split_once(']')?;
    let name = name.trim();
    (!name.is_empty()).then_some(name)
}

fn property(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.split_once(['=', ':'])?;
    let name = name.trim();
    (!name.is_empty()).then(|| (name.to_lowercase(), strip_comment(value)))
}

/// A value without the comment that follows it. Only a blank makes `#` or `;` begin one: either
/// may stand in a value.
fn strip_comment(value: &str) -> &str {
    let mut blank = false;
    for (at, c) in value.char_indices() {
        if blank && matches!(c, '#' | ';') {
            return value.get(..at).unwrap_or_default().trim();
        }
        blank = matches!(c, ' ' | '\t');
    }
    value.trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, section: &str, key: &str) -> Option<String> {
        let sections = parse(text).unwrap().sections;
        let (_, section) = sections.iter().find(|(name, _)| name == section)?;
        section
            .properties
            .get(key)
            .map(|value| value.expose().clone())
    }

    #[test]
    fn sections_and_keys_are_found_in_every_spelling() {
        let text = "\u{feff}# a comment\r\n[default]\r\nregion = eu-west-1\r\n\r\n\
                    [ profile  dev ] ; why\nROLE_ARN=arn:x # note\n\
                    \t\n  ; indented comment\naws_secret_access_key = a#b;c=d==\n empty =\n\
                    [other]\nkey =\n";
        assert_eq!(
            value(text, "default", "region").as_deref(),
            Some("eu-west-1")
        );
        let dev = "profile  dev";
        assert_eq!(value(text, dev, "role_arn").as_deref(), Some("arn:x"));
        // Indented, so it goes on with the key before it.
        let secret = value(text, dev, "aws_secret_access_key");
        assert_eq!(secret.as_deref(), Some("a#b;c=d==\nempty ="));
        assert_eq!(value(text, "other", "key").as_deref(), Some(""));
        assert_eq!(value(text, "other", "region"), None);
    }

    #[test]
    fn later_values_hold_and_sections_of_one_name_are_one() {
        let text = "[a]\nx = 1\nx = 2\ny = 3\n[b]\nx = 9\n[a]\ny = 4\n";
        assert_eq!(value(text, "a", "x").as_deref(), Some("2"));
        assert_eq!(value(text, "a", "y").as_deref(), Some("4"));
        assert_eq!(parse(text).unwrap().sections.len(), 2);
    }

    #[test]
    fn nested_keys_stay_with_their_parent() {
        let text = "[services s]\necr =\n  endpoint_url = http://ecr # ours\n  other = 1\n\
                    sts =\n\tEndpoint_URL=http://sts\n[profile p]\nservices = s\n";
        let ecr = value(text, "services s", "ecr").unwrap();
        assert_eq!(find_nested(&ecr, "endpoint_url"), Some("http://ecr"));
        let sts = value(text, "services s", "sts").unwrap();
        assert_eq!(find_nested(&sts, "endpoint_url"), Some("http://sts"));
        assert_eq!(find_nested(&sts, "region"), None);
        assert_eq!(value(text, "services s", "endpoint_url"), None);
    }

    #[test]
    fn comments_need_a_blank_before_them() {
        for (line, kept) in [
            ("a#b", "a#b"),
            ("a #b", "a"),
            ("a\t;b", "a"),
            ("a;b #c", "a;b"),
            ("  # all of it", ""),
            ("é # x", "é"),
        ] {
            assert_eq!(strip_comment(line), kept, "{line}");
        }
    }

    #[test]
    fn a_bad_line_spoils_its_section_alone_and_is_named_without_its_content() {
        for (text, fault) in [
            ("[a]\nhunter2\n[b]\nx = 1\n", "line 2: expected key = value"),
            (
                "[a]\n= hunter2\n[b]\nx = 1\n",
                "line 2: expected key = value",
            ),
        ] {
            let found = parse(text).unwrap().sections;
            assert_eq!(found[0].1.fault.as_deref(), Some(fault), "{text}");
            assert_eq!(found[1].1.fault, None, "{text}");
            assert_eq!(value(text, "b", "x").as_deref(), Some("1"), "{text}");
        }
        let stray = parse("hunter2 = x\n[b]\nx = 1\n").unwrap();
        let fault = "line 1: expected [name] before any key";
        assert_eq!(stray.fault.as_deref(), Some(fault));
        assert_eq!(stray.sections.len(), 1);
        for header in ["[c", "[]", "[ ] x"] {
            let text = format!("[a]\nx = 1\n{header}\nhunter2\n[b]\nx = 2\n");
            let found = parse(&text).unwrap();
            assert_eq!(found.fault.as_deref(), Some("line 3: expected [name]"));
            assert!(
                found
                    .sections
                    .iter()
                    .all(|(_, section)| section.fault.is_none())
            );
            assert_eq!(value(&text, "a", "x").as_deref(), Some("1"));
        }
        let many: String = (0..=SECTIONS_MAX).map(|n| format!("[{n}]\n")).collect();
        let fault = parse(&many).unwrap_err();
        assert!(fault.ends_with("more than 10000 sections"), "{fault}");
        assert!(parse("").unwrap().sections.is_empty());
    }

    #[test]
    fn bug_an_indented_first_key_refused_the_whole_file() {
        let text = "[a]\n  x = 1\n  y = 2\n\t  z\n[b]\nx = 3\n";
        assert_eq!(value(text, "a", "x").as_deref(), Some("1"));
        assert_eq!(value(text, "a", "y").as_deref(), Some("2\nz"));
        assert_eq!(value(text, "b", "x").as_deref(), Some("3"));
        // A key that is less indented than the one before is a key again.
        let less = "[a]\n    x = 1\n  y = 2\nz = 3\n";
        for (key, expected) in [("x", "1"), ("y", "2"), ("z", "3")] {
            assert_eq!(value(less, "a", key).as_deref(), Some(expected));
        }
    }

    #[test]
    fn text_after_a_header_is_a_comment() {
        for line in [
            "[profile a] ; note",
            "[profile a]#note",
            "[profile a] note [2]",
            "  [profile a]",
        ] {
            let text = format!("{line}\nx = 1\n");
            assert_eq!(
                value(&text, "profile a", "x").as_deref(),
                Some("1"),
                "{line}"
            );
        }
    }
}
