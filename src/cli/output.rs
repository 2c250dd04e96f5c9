//! The output of commands. Owns: writing to standard output and standard error, the exit code that
//! follows, and columns. Must not: know any command.

use std::fmt::Display;
use std::io::{self, Write};

use super::invocation::CommandFault;
use crate::config::{EXIT_FAILED, EXIT_OK, EXIT_SETTINGS};
use crate::log::{self, Format, Level};

/// Where a command writes.
pub(super) struct Streams<'a> {
    pub(super) out: &'a mut dyn Write,
    pub(super) err: &'a mut dyn Write,
}

impl Streams<'_> {
    /// Prints to standard output. A reader that has gone (`| head`) has seen what it wanted.
    pub(super) fn print(&mut self, text: &str) -> u8 {
        let text = tame(text);
        let written = self.out.write_all(text.as_bytes());
        match written.and_then(|()| self.out.flush()) {
            Ok(()) => EXIT_OK,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => EXIT_OK,
            Err(error) => {
                let _ = writeln!(self.err, "aws-ecr-proxy: standard output failed: {error}");
                EXIT_FAILED
            }
        }
    }

    /// Prints a reason to standard output, where container engines look for it.
    pub(super) fn fail(&mut self, text: &str) -> u8 {
        self.print(text);
        EXIT_FAILED
    }

    /// Writes faults to standard error, in text.
    pub(super) fn complain(&mut self, faults: &[impl Display]) -> u8 {
        self.complain_as(Format::Text, faults)
    }

    /// Writes faults of the settings to standard error, in the format of the log.
    pub(super) fn complain_as(&mut self, format: Format, faults: &[impl Display]) -> u8 {
        for fault in faults {
            let line = match format {
                Format::Text => format!("aws-ecr-proxy: {}\n", tame(&fault.to_string())),
                Format::Json => {
                    log::format_line(format, Level::Error, "bad setting", &[("error", fault)])
                }
            };
            // When standard error is closed, the exit code is all that is left.
            let _ = self.err.write_all(line.as_bytes());
        }
        EXIT_SETTINGS
    }

    /// Prints a text, or says why there is none.
    pub(super) fn print_result(&mut self, text: Result<String, String>) -> u8 {
        match text {
            Ok(text) => self.print(&text),
            Err(why) => self.complain(&[why]),
        }
    }

    /// Says something on standard error that is no fault.
    pub(super) fn note(&mut self, text: &str) {
        self.complain(&[text]);
    }
}

/// Tells why a command has failed. Returns its exit code.
pub(super) fn finish(
    command: &str,
    ended: Result<u8, CommandFault>,
    streams: &mut Streams<'_>,
) -> u8 {
    match ended {
        Ok(code) => code,
        Err(CommandFault::Usage(faults)) => streams.complain(&faults),
        Err(CommandFault::Failed(why)) => streams.fail(&format!("{command}: {why}\n")),
    }
}

/// Rows in columns as wide as their widest text, or `widest`.
pub(super) fn columns<const N: usize>(rows: &[[String; N]], widest: usize) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = text.chars().count().max(*width).min(widest);
        }
    }
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(widths);
        let cells = cells.map(|(text, width)| format!("{text:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    });
    lines.collect()
}

/// Text that cannot steer a terminal: names and faults may come from anybody.
fn tame(text: &str) -> String {
    text.replace(|c: char| c.is_control() && !matches!(c, '\n' | '\t'), "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bug_names_out_of_an_archive_steered_the_terminal() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut streams = Streams {
            out: &mut out,
            err: &mut err,
        };
        streams.print("li\x1b[31mnux\r\u{9b}\tx\n");
        streams.note("--as=\x1b[2J");
        assert_eq!(out, b"li?[31mnux??\tx\n");
        assert_eq!(err, b"aws-ecr-proxy: --as=?[2J\n");
    }

    #[test]
    fn a_column_is_as_wide_as_its_widest_text_or_as_allowed() {
        let rows = [["a", "bb", "c"], ["dddd", "e", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows, 9), "a     bb  c\ndddd  e\n");
        assert_eq!(columns(&rows, 2), "a   bb  c\ndddd  e\n");
    }
}
