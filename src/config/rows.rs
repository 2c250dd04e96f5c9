//! The SETTINGS table: pure data.
//!
//! A row is added in the file of its group and nowhere else; flag, parser, `--help` and
//! `docs/configuration.md` follow. `UPDATE_DOCS=1 cargo test` writes the page anew.

mod access;
mod aws;
mod cache;
mod clients;
mod identity;
mod limits;
mod operation;
mod outbound;
mod registry;

use super::table::Setting;

/// The rows, file by file, in the order of help and documentation.
static GROUPS: [&[Setting]; 9] = [
    registry::ROWS,
    outbound::ROWS,
    aws::ROWS,
    identity::ROWS,
    clients::ROWS,
    access::ROWS,
    cache::ROWS,
    limits::ROWS,
    operation::ROWS,
];

/// Every setting there is, in the table's order.
pub fn table_rows() -> impl Iterator<Item = &'static Setting> + Clone {
    GROUPS.iter().copied().flatten()
}
