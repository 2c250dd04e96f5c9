//! Help and documentation from the table. Owns: the text around the rows. Must not: know a setting
//! by name.

use std::fmt::Write as _;

use super::parse::{format_time, in_hours};
use super::rows::table_rows;
use super::table::{Group, Kind, Setting, flag_of};

/// Columns of help; the width of a plain terminal.
const HELP_COLUMNS: usize = 80;
/// Columns that the text below a flag is moved in.
const HELP_INDENT: usize = 10;

/// The settings part of `--help`.
pub fn help() -> String {
    let mut text = String::from(
        "Each setting is a flag and, in the same words, an environment variable: --listen-port is\n\
         LISTEN_PORT. A flag beats a variable, which beats the default.\n",
    );
    for group in Group::ALL {
        let _ = write!(text, "\n{}\n", group.title());
        for setting in rows_of(group) {
            text.push_str(&help_entry(setting));
        }
    }
    text
}

fn help_entry(setting: &Setting) -> String {
    let mut entry = String::new();
    for (index, name) in setting.names().enumerate() {
        let separator = if index == 0 { "  " } else { ", " };
        let _ = write!(entry, "{separator}{}", flag_of(name));
    }
    let placeholder = setting.kind.unit().placeholder();
    let gap = if placeholder.is_empty() { "" } else { " " };
    let _ = writeln!(entry, "{gap}{placeholder}");
    let mut about = setting.meaning.replace('`', "");
    let preset = setting.preset.text().replace('`', "");
    let _ = write!(about, " [default: {preset}");
    if let Some((ends, _)) = limits(setting) {
        let _ = write!(about, "; {ends}");
    }
    about.push(']');
    wrap(&mut entry, &about, HELP_INDENT);
    entry
}

/// A text in lines that a plain terminal shows whole.
pub fn wrapped(words: &str) -> String {
    let mut text = String::new();
    wrap(&mut text, words, 0);
    text.trim_end().to_owned()
}

/// Adds `words` to `text`, in lines of at most [`HELP_COLUMNS`].
fn wrap(text: &mut String, words: &str, indent: usize) {
    let mut column = 0;
    for word in words.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > HELP_COLUMNS {
            text.push('\n');
            column = 0;
        }
        if column == 0 {
            text.push_str(&" ".repeat(indent));
            column = indent;
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}

/// The settings of one section.
fn rows_of(group: Group) -> impl Iterator<Item = &'static Setting> {
    table_rows().filter(move |setting| setting.group == group)
}

/// `1 to 64`, and why.
fn limits(setting: &Setting) -> Option<(String, &'static str)> {
    match &setting.kind {
        Kind::Hours(limits, _) => Some((limits.ends(in_hours), limits.reason)),
        Kind::Number(limits, _) => Some((limits.ends(u32::clone), limits.reason)),
        Kind::Time(limits, _) => Some((limits.ends(format_time), limits.reason)),
        Kind::File(_) | Kind::Switch(_) | Kind::Text(..) => None,
    }
}

#[cfg(test)]
mod tests;
