//! Header fields. Owns: [`Headers`]. Must not: know what a field means.

use std::fmt;

/// Room for the fields of a head, in bytes and in lines: a usual head fits.
const TEXT_BYTES: usize = 512;
const FIELDS: usize = 12;

/// Header fields in the order they came, names compared without case (RFC 9110 §5.1). The text of
/// all of them is one string: a request with ten fields costs two allocations in place of twenty.
#[derive(Clone, Default)]
pub struct Headers {
    /// Names and values, one after the other. Those of a removed field stay.
    text: String,
    fields: Vec<FieldPlace>,
}

/// Where a field stands in the text: the value follows the name.
#[derive(Debug, Clone, Copy)]
struct FieldPlace {
    name: usize,
    value: usize,
    end: usize,
}

impl FieldPlace {
    fn read(self, text: &str) -> (&str, &str) {
        let part = |from, to| text.get(from..to).unwrap_or_default();
        (part(self.name, self.value), part(self.value, self.end))
    }
}

impl Headers {
    /// No fields.
    pub const fn new() -> Self {
        Self {
            text: String::new(),
            fields: Vec::new(),
        }
    }

    /// Adds a field line and keeps those of the same name.
    pub fn add(&mut self, name: impl AsRef<str>, value: impl AsRef<str>) {
        if self.fields.is_empty() {
            self.text.reserve(TEXT_BYTES);
            self.fields.reserve(FIELDS);
        }
        let start = self.text.len();
        self.text.push_str(name.as_ref());
        let middle = self.text.len();
        self.text.push_str(value.as_ref());
        self.fields.push(FieldPlace {
            name: start,
            value: middle,
            end: self.text.len(),
        });
    }

    /// Replaces all field lines of that name by one.
    pub fn set(&mut self, name: &str, value: impl AsRef<str>) {
        self.remove(name);
        self.add(name, value);
    }

    /// Removes all field lines of that name.
    pub fn remove(&mut self, name: &str) {
        self.retain(|other, _| !other.eq_ignore_ascii_case(name));
    }

    /// Keeps the field lines for which `keep(name, value)` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &str) -> bool) {
        let text = &self.text;
        self.fields.retain(|field| {
            let (name, value) = field.read(text);
            keep(name, value)
        });
    }

    /// The first value of that name.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Every value of that name, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.iter()
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
    }

    /// All values of that name as one list (RFC 9110 §5.3), or none.
    pub fn join_values(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self.all(name).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// The options of `Connection` in lower case (RFC 9110 §7.6.1): `close`, or fields that end at
    /// the next hop.
    pub fn connection_options(&self) -> Vec<String> {
        let values = self.all("Connection").flat_map(|value| value.split(','));
        let options = values.map(|option| option.trim().to_ascii_lowercase());
        options.collect()
    }

    /// Every field line as `(name, value)`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|field| field.read(&self.text))
    }

    /// The number of field lines.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// True without any field line.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Headers {}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(fields: I) -> Self {
        let mut headers = Self::new();
        for (name, value) in fields {
            headers.add(name, value);
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_ignore_case_and_keep_order() {
        let mut headers = Headers::from_iter([("Accept", "a"), ("X", "1"), ("accept", "b")]);
        assert_eq!(headers.join_values("ACCEPT").as_deref(), Some("a, b"));
        assert_eq!(headers.first("x"), Some("1"));
        headers.set("ACCEPT", "c");
        assert_eq!(headers.join_values("accept").as_deref(), Some("c"));
        assert_eq!(headers.join_values("absent"), None);
        assert_eq!(headers.len(), 2);
    }
}
