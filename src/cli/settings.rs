//! `settings`: the effective settings and their origin. Owns: that table. Must not: show a secret.

use serde_json::json;

use super::invocation::{CommandFault, Invocation};
use super::output::{Streams, columns};
use crate::config::{Effective, Preset};

/// Widest column of `settings`; a longer value moves only its own line.
const COLUMN_WIDTH_MAX: usize = 40;

/// Shows the settings, their faults and warnings.
pub(super) fn run(command: Invocation<'_>, streams: &mut Streams<'_>) -> Result<u8, CommandFault> {
    let shown = streams.print(&match command.has("--json") {
        true => write_json(command.effective),
        false => write_table(command.effective),
    });
    Ok(match command.faults {
        [] => {
            streams.complain(&command.settings.warnings);
            shown
        }
        faults => streams.complain(faults),
    })
}

/// The effective settings as one document; a setting that has no value is `null`.
fn write_json(effective: &[Effective]) -> String {
    let rows = effective.iter().map(|row| {
        let origin = row.origin.to_string().replace('`', "");
        let value = row.value.as_deref();
        json!({ "name": row.setting.name, "value": value, "origin": origin })
    });
    format!("{:#}\n", json!({ "settings": rows.collect::<Vec<_>>() }))
}

/// The effective settings, in columns.
fn write_table(effective: &[Effective]) -> String {
    let rows: Vec<[String; 3]> = effective
        .iter()
        .map(|row| {
            let value = row.value.clone().unwrap_or_else(|| "-".to_owned());
            let origin = match (&row.value, row.setting.preset) {
                (None, Preset::Unset(words)) => format!("{}: {words}", row.origin),
                _ => row.origin.to_string(),
            };
            [row.setting.name.to_owned(), value, origin.replace('`', "")]
        })
        .collect();
    columns(&rows, COLUMN_WIDTH_MAX)
}
