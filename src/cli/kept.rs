//! `list`, `verify` and `remove`: what the cache has. Owns: their output. Must not: ask upstream,
//! or need a proxy that runs.

use serde_json::{Value, json};

use super::invocation::{CommandFault, Invocation};
use super::output::{Streams, columns};
use super::progress::{Progress, bytes};
use crate::app;
use crate::cache::audit::Audit;
use crate::cache::disk::Disk;
use crate::cache::holdings::{CachedImage, PlatformsHere};
use crate::cache::moves::TagMove;
use crate::cache::pins::Pins;
use crate::cache::store::Store;
use crate::calendar::format_rfc3339;
use crate::config::{EXIT_FAILED, EXIT_OK, Settings};
use crate::platforms::Platforms;

/// Characters of a digest that are shown in a table: enough to tell images apart.
const DIGEST_SHOWN: usize = "sha256:".len() + 12;
/// Moves of one tag that are shown, the last one first.
const MOVES_SHOWN: usize = 10;
/// Characters of a time that are shown in a table: to the minute.
const TIME_SHOWN: usize = "2026-11-29T08:00".len();

/// Lists every image in the cache.
pub(super) fn list(command: Invocation<'_>, streams: &mut Streams<'_>) -> Result<u8, CommandFault> {
    let disk = command.open_cache(Store::open_read_only)?;
    let pins = app::pins(command.settings);
    let mut rows = Vec::new();
    disk.holdings()
        .each(&mut |image| rows.push(describe(&image, command.settings, &pins)));
    if command.has("--json") {
        let rows: Vec<String> = rows.iter().map(Value::to_string).collect();
        let text = format!("{{\"images\":[\n{}\n]}}\n", rows.join(",\n"));
        return Ok(streams.print(&text));
    }
    let head = [
        "IMAGE",
        "DIGEST",
        "SIZE",
        "PULLED",
        "CONFIRMED",
        "PLATFORMS",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows.iter().map(row));
    Ok(streams.print(&columns(&lines, usize::MAX)))
}

/// An image as `list --json` has it.
fn describe(image: &CachedImage, settings: &Settings, pins: &Pins) -> Value {
    let (scope, closure) = (image.scope.as_scope(), &image.closure);
    let here = PlatformsHere::of(&closure.parts);
    let tag = image.tag.as_ref().map(|tag| tag.as_str());
    let frozen = &settings.freeze_tags;
    let is_frozen = |tag| frozen.matches(scope.registry.name(), scope.repository.as_str(), tag);
    json!({
        "registry": scope.registry.name(),
        "repository": scope.repository.as_str(),
        "tag": tag,
        "digest": image.digest.as_str(),
        "is_whole": closure.is_whole(),
        "platforms": here.whole,
        "incomplete": here.partial,
        "absent": here.absent,
        "bytes": closure.bytes_here,
        "referrers": closure.referrers.len(),
        "pulled": format_rfc3339(image.pulled),
        "confirmed": image.confirmed.map(format_rfc3339),
        "pinned": pins.hold(scope, image.tag.as_ref(), &[&image.digest]),
        "frozen": tag.is_some_and(is_frozen),
    })
}

/// An image as a row of the table.
fn row(image: &Value) -> [String; 6] {
    let text = |name: &str| image[name].as_str().unwrap_or_default();
    let short = |name: &str, length: usize| text(name).get(..length).unwrap_or("-").to_owned();
    let tag = image["tag"].as_str().map(|tag| format!(":{tag}"));
    let place = format!("{}/{}", text("registry"), text("repository"));
    [
        place + &tag.unwrap_or_default(),
        short("digest", DIGEST_SHOWN),
        bytes(image["bytes"].as_u64().unwrap_or_default()),
        short("pulled", TIME_SHOWN),
        short("confirmed", TIME_SHOWN),
        platforms(image),
    ]
}

fn platforms(image: &Value) -> String {
    let list = |name: &str| image[name].as_array().into_iter().flatten();
    let mut words: Vec<String> = Vec::new();
    for (name, note) in [("platforms", ""), ("incomplete", " (partial)")] {
        let names = list(name).filter_map(Value::as_str);
        words.extend(names.map(|name| format!("{name}{note}")));
    }
    if let count @ 1.. = list("absent").count() {
        words.push(format!("{count} not here"));
    }
    let flags = ["pinned", "frozen"].into_iter();
    words.extend(flags.filter(|flag| image[*flag] == true).map(str::to_owned));
    words.join(", ")
}

/// Says whether images are complete, and whether every blob is what its name says.
pub(super) fn verify(
    command: Invocation<'_>,
    streams: &mut Streams<'_>,
) -> Result<u8, CommandFault> {
    let (names, platforms) = command.images(&command.settings.prefetch.platforms)?;
    let disk = command.open_cache(Store::open_read_only)?;
    let (mut images, mut total) = (Vec::new(), 0);
    for name in &names {
        let scope = command.scope_of(&disk.names, name)?;
        let image = disk.holdings().find(scope.as_scope(), name.reference());
        total += image.as_ref().map_or(0, |image| image.closure.bytes_here);
        images.push(image);
    }
    if names.is_empty() {
        let bytes = disk.store.count_blob_bytes();
        total = bytes.map_err(|error| error.to_string())?;
    }
    let (mut progress, mut done) = (Progress::new(), 0);
    let mut on_hashed = |bytes| {
        done += bytes;
        progress.show("verify", done, total);
    };
    let mut verification = Verification {
        disk: &disk,
        platforms: &platforms,
        audit: Audit::new(&disk.store, &disk.names, &mut on_hashed),
        streams,
        images: 0,
        complete: 0,
        faults: 0,
    };
    for (name, image) in names.iter().zip(&images) {
        match image {
            Some(image) => verification.image(image),
            None => verification.fault(&format!("{name} is not in the cache")),
        }
    }
    if names.is_empty() {
        verification.everything()?;
    }
    Ok(match verification.faults {
        0 => EXIT_OK,
        _ => EXIT_FAILED,
    })
}

struct Verification<'a, 'b> {
    disk: &'a Disk,
    platforms: &'a Platforms,
    audit: Audit<'a>,
    streams: &'a mut Streams<'b>,
    images: usize,
    complete: usize,
    faults: usize,
}

impl Verification<'_, '_> {
    fn everything(&mut self) -> Result<(), String> {
        self.disk.holdings().each(&mut |image| self.image(&image));
        let others = self.audit.others().map_err(|error| error.to_string())?;
        for fault in others.into_iter().chain(self.audit.files()) {
            self.fault(&fault);
        }
        let (images, complete, faults) = (self.images, self.complete, self.faults);
        let blobs = self.audit.blob_count();
        self.say(&format!(
            "{images} images, {complete} complete; {blobs} blobs and manifests; {faults} faults"
        ));
        Ok(())
    }

    fn image(&mut self, image: &CachedImage) {
        let platforms = self.platforms;
        let mut found = self.audit.image(image, platforms);
        if !found.is_empty() {
            // A proxy that runs may have evicted, replaced or fetched it meanwhile.
            self.audit.forget_faults();
            let Some(again) = self.disk.holdings().look_again(image) else {
                return;
            };
            found = self.audit.image(&again, platforms);
        }
        self.images += 1;
        self.complete += usize::from(found.is_empty());
        self.faults += usize::from(!found.is_empty());
        let verdict = found.iter().map(|(verdict, _)| *verdict).max();
        let word = verdict.unwrap_or_default().word();
        self.say(&format!("{} {word}", image.name()));
        for (_, fault) in &found {
            self.say(&format!("  {fault}"));
        }
        let (repository, tag) = (&image.scope.repository, image.tag.as_ref());
        let moves = self.disk.names.moves(&image.scope.registry);
        let is_of_image = |moved: &&TagMove| {
            moved.repository == repository.as_str()
                && tag.is_some_and(|tag| moved.tag == tag.as_str())
        };
        for TagMove { at, from, to, .. } in moves.iter().filter(is_of_image).take(MOVES_SHOWN) {
            self.say(&format!("  at {at} the tag moved from {from} to {to}"));
        }
    }

    fn fault(&mut self, line: &str) {
        self.faults += 1;
        self.say(line);
    }

    /// Prints a line; a reader that has gone has seen what it wanted.
    fn say(&mut self, line: &str) {
        self.streams.print(&format!("{line}\n"));
    }
}

/// Removes images, and what nothing else needs.
pub(super) fn remove(
    command: Invocation<'_>,
    streams: &mut Streams<'_>,
) -> Result<u8, CommandFault> {
    let (names, _) = command.images(&Platforms::default())?;
    let disk = command.open_cache(Store::open)?;
    let mut code = EXIT_OK;
    for name in &names {
        let scope = command.scope_of(&disk.names, name);
        let removed =
            scope.and_then(|scope| disk.sweeper.remove(scope.as_scope(), name.reference()));
        let line = match removed {
            Ok(freed) => format!("{name} removed, {} freed\n", bytes(freed)),
            Err(why) => {
                code = EXIT_FAILED;
                format!("{name} was not removed: {why}\n")
            }
        };
        streams.print(&line);
    }
    disk.sweeper.write_all();
    Ok(code)
}
