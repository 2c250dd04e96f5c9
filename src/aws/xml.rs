//! The little of XML that STS replies need. Owns: finding an element's text. Must not: grow into a
//! parser; attributes, namespaces, comments and nesting are passed over.

/// The text of the first element `name`, wherever it stands, with entities resolved; none when
/// there is no such element or the document ends inside it.
///
/// AWS sends the elements we read without children, so the text ends at the next tag.
pub(super) fn first_text(document: &str, name: &str) -> Option<String> {
    let mut rest = document;
    loop {
        let (_, from_tag) = rest.split_once('<')?;
        let (tag, after) = from_tag.split_once('>')?;
        rest = after;
        let empty = tag.ends_with('/');
        let tag_name = tag
            .split(|c: char| c.is_ascii_whitespace() || c == '/')
            .next()
            .unwrap_or_default();
        let local = tag_name
            .rsplit_once(':')
            .map_or(tag_name, |(_, local)| local);
        if local == name {
            if empty {
                return Some(String::new());
            }
            let (text, _) = after.split_once('<')?;
            return Some(unescape(text.trim()));
        }
    }
}

/// Resolves the five predefined entities and character references (XML 1.0 §4.1, §4.6). What is
/// neither stays as it is.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, from)) = rest.split_once('&') {
        out.push_str(before);
        let resolved = from
            .split_once(';')
            .and_then(|(entity, after)| character(entity).map(|c| (c, after)));
        rest = if let Some((c, after)) = resolved {
            out.push(c);
            after
        } else {
            out.push('&');
            from
        };
    }
    out.push_str(rest);
    out
}

fn character(entity: &str) -> Option<char> {
    match entity {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = entity.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_element_of_a_name_wins() {
        let document = "<?xml version=\"1.0\"?><r xmlns='urn:x'><a:Error><Code k=\"1\"> One </Code>\
                        <Code>Two</Code><Message/></a:Error></r>";
        assert_eq!(first_text(document, "Code").as_deref(), Some("One"));
        assert_eq!(first_text(document, "Message").as_deref(), Some(""));
        assert_eq!(first_text(document, "Cod"), None);
    }

    #[test]
    fn entities_are_resolved_once() {
        let document = "<m>&lt;a&gt; &amp;amp; &quot;&apos;&#39;&#x41;&nbsp; & &#xffffffff;</m>";
        assert_eq!(
            first_text(document, "m").as_deref(),
            Some("<a> &amp; \"''A&nbsp; & &#xffffffff;")
        );
    }

    #[test]
    fn broken_documents_have_no_elements() {
        for document in ["", "<", "<m", "<m>cut off", "no tags", "</m>", "<>"] {
            assert_eq!(first_text(document, "m"), None, "{document}");
        }
    }
}
