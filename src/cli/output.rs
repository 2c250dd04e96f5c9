//! The output of commands. Owns: writing to standard output and standard error, and the exit code
//! that follows. Must not: know any command.

use std::io::{self, Write};

use crate::config::{EXIT_FAILED, EXIT_OK, EXIT_SETTINGS};
use crate::log::{self, Format, Level};

/// Prints to standard output. A reader that has gone (`| head`) has seen what it wanted.
pub(super) fn print(out: &mut dyn Write, err: &mut dyn Write, text: &str) -> u8 {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => EXIT_OK,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => EXIT_OK,
        Err(error) => {
            let _ = writeln!(err, "aws-ecr-proxy: standard output failed: {error}");
            EXIT_FAILED
        }
    }
}

/// Prints a reason to standard output, where container engines look for it.
pub(super) fn fail(out: &mut dyn Write, err: &mut dyn Write, text: &str) -> u8 {
    print(out, err, text);
    EXIT_FAILED
}

/// Writes faults of the settings to standard error, in the format of the log.
pub(super) fn complain(
    err: &mut dyn Write,
    format: Format,
    faults: &[impl std::fmt::Display],
) -> u8 {
    for fault in faults {
        // When standard error is closed, the exit code is all that is left.
        let _ = match format {
            Format::Text => writeln!(err, "aws-ecr-proxy: {fault}"),
            Format::Json => {
                let fields: [log::Field<'_>; 1] = [("error", fault)];
                let line = log::format_line(format, Level::Error, "bad setting", &fields);
                err.write_all(line.as_bytes())
            }
        };
    }
    EXIT_SETTINGS
}
