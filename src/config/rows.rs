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

use super::table::{Group, Setting};

/// The rows, file by file, in the order of help and documentation.
static GROUPS: [(Group, &[Setting]); 9] = [
    (Group::Registry, registry::ROWS),
    (Group::Registry, outbound::ROWS),
    (Group::Aws, aws::ROWS),
    (Group::Aws, identity::ROWS),
    (Group::Clients, clients::ROWS),
    (Group::Access, access::ROWS),
    (Group::Cache, cache::ROWS),
    (Group::Limits, limits::ROWS),
    (Group::Operation, operation::ROWS),
];

/// Every setting there is, in the table's order.
pub fn table_rows() -> impl Iterator<Item = &'static Setting> + Clone {
    GROUPS.iter().flat_map(|(_, rows)| *rows)
}

/// The settings of one section, in the table's order.
pub(super) fn rows_of(group: Group) -> impl Iterator<Item = &'static Setting> {
    let groups = GROUPS.iter().filter(move |(of, _)| *of == group);
    groups.flat_map(|(_, rows)| *rows)
}
