//! A list in a JSON document from outside. Owns: handing out its elements one by one, and noticing
//! a document that was cut. Must not: keep the document as a tree, which takes up to twenty times
//! its bytes.

use std::fmt;
use std::io::{self, Read};
use std::marker::PhantomData;

use serde_core::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};

/// Calls `each` with every element of the list in `field`. An empty list may be `null`, as Go
/// writes it. None when the document is no such list; what was handed out until then is void.
pub(super) fn for_each<'a, T: Deserialize<'a>>(
    document: &'a [u8],
    field: &str,
    each: impl FnMut(T),
) -> Option<()> {
    let mut json = serde_json::Deserializer::from_slice(document);
    let reader = Document {
        field,
        list: JsonList(each, PhantomData),
    };
    let is_there = reader.deserialize(&mut json).ok()?;
    json.end().ok()?;
    is_there.then_some(())
}

/// Reads an object and hands out the list in one of its fields. Returns whether the field is there.
struct Document<'f, T, F> {
    field: &'f str,
    list: JsonList<T, F>,
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> DeserializeSeed<'de> for Document<'_, T, F> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Document<'_, T, F> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with {:?}", self.field)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<bool, A::Error> {
        let mut is_there = false;
        while let Some(name) = fields.next_key::<String>()? {
            if name != self.field {
                fields.next_value::<IgnoredAny>()?;
                continue;
            }
            if is_there {
                return Err(A::Error::custom("the list is there twice"));
            }
            fields.next_value_seed(&mut self.list)?;
            is_there = true;
        }
        Ok(is_there)
    }
}

/// Reads a list, and passes on what is in it.
struct JsonList<T, F>(F, PhantomData<T>);

impl<'de, T: Deserialize<'de>, F: FnMut(T)> DeserializeSeed<'de> for &mut JsonList<T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for &mut JsonList<T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list or null")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(element) = list.next_element()? {
            (self.0)(element);
        }
        Ok(())
    }
}

/// A JSON object of unknown length on its way to a client. When the connection to upstream ends
/// before the object does, the read fails (RFC 9112 §6.3, item 8).
pub(super) struct WholeObject<R> {
    reader: R,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The last bracket was closed.
    is_whole: bool,
}

impl<R> WholeObject<R> {
    pub(super) const fn new(reader: R) -> Self {
        Self {
            reader,
            depth: 0,
            in_string: false,
            escaped: false,
            is_whole: false,
        }
    }

    fn track(&mut self, byte: u8) {
        match (self.in_string, byte) {
            (true, _) if self.escaped => self.escaped = false,
            (true, b'\\') => self.escaped = true,
            (_, b'"') => self.in_string = !self.in_string,
            (false, b'{' | b'[') => self.depth += 1,
            (false, b'}' | b']') => {
                self.depth = self.depth.saturating_sub(1);
                self.is_whole = self.depth == 0;
            }
            _ => {}
        }
    }
}

impl<R: Read> Read for WholeObject<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(into)?;
        let bytes = into.get(..count).unwrap_or_default();
        bytes.iter().for_each(|byte| self.track(*byte));
        let is_cut = !self.is_whole || self.depth > 0 || self.in_string;
        if count == 0 && !into.is_empty() && is_cut {
            let why = "the list broke off";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Option<Vec<String>> {
        let mut names = Vec::new();
        for_each(text.as_bytes(), "tags", |name| names.push(name)).map(|()| names)
    }

    #[test]
    fn what_is_no_list_is_not_read_as_one() {
        let expected = Some(vec!["x".to_owned(), "y\n".to_owned()]);
        assert_eq!(
            names(r#"{"name":"a","tags":["x","y\n"],"n":[{}]}"#),
            expected
        );
        assert_eq!(names(r#"{"tags":null}"#), Some(Vec::new()));
        for text in [
            "",
            "<html>",
            "[]",
            "{}",
            r#"{"tags":5}"#,
            r#"{"tags":[5]}"#,
            r#"{"tags":["x"]"#,
            r#"{"tags":["x"]}]"#,
            r#"{"tags":["x"],"tags":["y"]}"#,
            r#"["tags"]"#,
        ] {
            assert_eq!(names(text), None, "{text}");
        }
    }

    #[test]
    fn bug_a_cut_list_was_passed_on_as_a_whole_one() {
        let read = |text: &str| {
            let mut whole = WholeObject::new(text.as_bytes());
            let mut bytes = Vec::new();
            let read = whole.read_to_end(&mut bytes);
            assert_eq!(bytes, text.as_bytes());
            read.is_ok()
        };
        let list = r#"{"name":"a\"}","tags":["x]}","\\"],"n":{"m":[]}}"#;
        assert!(read(list) && read(&format!(" {list}\n")));
        for end in 0..list.len() {
            assert!(!read(&list[..end]), "{}", &list[..end]);
        }
    }
}
