//! `list`, `verify` and `remove`: what the cache has. Owns: their words. Must not: ask upstream, or
//! need a proxy that runs.

use std::collections::HashSet;
use std::io::Write;

use serde_json::{Value, json};

use super::output::{complain, fail, print};
use super::progress::{Progress, bytes};
use crate::app;
use crate::cache::audit::{Audit, ImageFaults};
use crate::cache::closure::NO_PLATFORM;
use crate::cache::disk::Disk;
use crate::cache::holdings::{CachedImage, Holdings};
use crate::cache::moves::TagMove;
use crate::cache::names::{Names, Scope};
use crate::cache::pins::Pins;
use crate::cache::store::Store;
use crate::calendar::format_rfc3339;
use crate::config::{EXIT_FAILED, EXIT_OK, Settings};
use crate::image_name::ImageName;
use crate::log::Format;
use crate::oci::Registry;
use crate::platforms::Platforms;

/// Characters of a digest that are shown in a table: enough to tell images apart.
const DIGEST_SHOWN: usize = "sha256:".len() + 12;
/// Moves of one tag that are shown, the last one first.
const MOVES_SHOWN: usize = 10;
/// Characters of a time that are shown in a table: to the minute.
const TIME_SHOWN: usize = "2026-11-29T08:00".len();

/// Lists every image in the cache.
pub(super) fn list(
    settings: &Settings,
    json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let disk = match open(settings) {
        Ok(disk) => disk,
        Err(why) => return fail(out, err, &format!("list: {why}\n")),
    };
    let pins = app::pins(settings);
    let mut rows = Vec::new();
    holdings(&disk).each(&mut |image| rows.push(describe(&image, settings, &pins)));
    match json {
        true => {
            let rows: Vec<String> = rows.iter().map(Value::to_string).collect();
            let text = format!("{{\"images\":[\n{}\n]}}\n", rows.join(",\n"));
            print(out, err, &text)
        }
        false => print(out, err, &table(&rows)),
    }
}

/// An image as `list --json` has it.
fn describe(image: &CachedImage<'_>, settings: &Settings, pins: &Pins) -> Value {
    let (scope, closure) = (image.scope, &image.closure);
    let (mut whole, mut partial, mut absent) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for part in &closure.parts {
        let list = match part {
            part if part.missing.is_empty() => &mut whole,
            part if part.is_absent() => &mut absent,
            _ => &mut partial,
        };
        if part.platform != NO_PLATFORM && seen.insert((&part.platform, part.missing.len())) {
            list.push(part.platform.as_str());
        }
    }
    let tag = image.tag.as_ref().map(|tag| tag.as_str());
    let frozen = &settings.freeze_tags;
    let is_frozen = |tag| frozen.matches(scope.registry.name(), scope.repository.as_str(), tag);
    json!({
        "registry": scope.registry.name(),
        "repository": scope.repository.as_str(),
        "tag": tag,
        "digest": image.digest.as_str(),
        "is_whole": closure.is_whole(),
        "platforms": whole,
        "incomplete": partial,
        "absent": absent,
        "bytes": closure.bytes_here(),
        "referrers": closure.referrers.len(),
        "pulled": format_rfc3339(image.pulled),
        "confirmed": image.confirmed.map(format_rfc3339),
        "pinned": pins.hold(scope, image.tag.as_ref(), &[&image.digest]),
        "frozen": tag.is_some_and(is_frozen),
    })
}

/// The images in columns.
fn table(rows: &[Value]) -> String {
    let head = [
        "IMAGE",
        "DIGEST",
        "SIZE",
        "PULLED",
        "CONFIRMED",
        "PLATFORMS",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default();
        let short = |name: &str, length: usize| match text(name).get(..length) {
            Some(text) => text.to_owned(),
            None => "-".to_owned(),
        };
        let name = match row["tag"].as_str() {
            Some(tag) => format!("{}/{}:{tag}", text("registry"), text("repository")),
            None => format!("{}/{}", text("registry"), text("repository")),
        };
        lines.push([
            name,
            short("digest", DIGEST_SHOWN),
            bytes(row["bytes"].as_u64().unwrap_or_default()),
            short("pulled", TIME_SHOWN),
            short("confirmed", TIME_SHOWN),
            platforms(row),
        ]);
    }
    let mut widths = [0; 6];
    for line in &lines {
        for (width, text) in widths.iter_mut().zip(line) {
            *width = text.chars().count().max(*width);
        }
    }
    let lines = lines.iter().map(|line| {
        let cells = line.iter().zip(widths);
        let cells = cells.map(|(text, width)| format!("{text:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    });
    lines.collect()
}

fn platforms(row: &Value) -> String {
    let list = |name: &str| row[name].as_array().cloned().unwrap_or_default();
    let mut words: Vec<String> = Vec::new();
    for (name, note) in [("platforms", ""), ("incomplete", " (partial)")] {
        let platforms = list(name).into_iter();
        words.extend(platforms.filter_map(|p| Some(format!("{}{note}", p.as_str()?))));
    }
    if let count @ 1.. = list("absent").len() {
        words.push(format!("{count} not here"));
    }
    for flag in ["pinned", "frozen"] {
        if row[flag] == true {
            words.push(flag.to_owned());
        }
    }
    words.join(", ")
}

/// Says whether images are complete, and whether every blob is what its name says.
pub(super) fn verify(
    settings: &Settings,
    words: &[String],
    platforms: Option<&str>,
    (out, err): (&mut dyn Write, &mut dyn Write),
) -> u8 {
    let names: Result<Vec<ImageName>, String> = words.iter().map(|word| word.parse()).collect();
    let text = platforms.unwrap_or("all");
    let picked = text.parse::<Platforms>();
    let picked = picked.map_err(|why| format!("--platform={text}: {why}"));
    let (names, picked) = match (names, picked) {
        (Ok(names), Ok(picked)) => (names, picked),
        (names, picked) => {
            let faults: Vec<String> = names.err().into_iter().chain(picked.err()).collect();
            return complain(err, Format::Text, &faults);
        }
    };
    let disk = match open(settings) {
        Ok(disk) => disk,
        Err(why) => return fail(out, err, &format!("verify: {why}\n")),
    };
    let mut verification = Verification {
        disk: &disk,
        picked,
        out,
        images: 0,
        complete: 0,
        faults: 0,
    };
    let verified = match names.is_empty() {
        true => verification.everything(),
        false => verification.named(settings, &names),
    };
    match verified {
        Ok(()) if verification.faults == 0 => EXIT_OK,
        Ok(()) => EXIT_FAILED,
        Err(why) => fail(verification.out, err, &format!("verify: {why}\n")),
    }
}

struct Verification<'a> {
    disk: &'a Disk,
    picked: Platforms,
    out: &'a mut dyn Write,
    images: usize,
    complete: usize,
    faults: usize,
}

impl Verification<'_> {
    fn named(&mut self, settings: &Settings, names: &[ImageName]) -> Result<(), String> {
        let holdings = holdings(self.disk);
        for name in names {
            let registry = registry_of(settings, &self.disk.names, name)?;
            let scope = Scope {
                registry: &registry,
                repository: name.repository(),
            };
            let Some(image) = holdings.find(scope, name.reference()) else {
                self.faults += 1;
                self.say(&format!("{name} is not in the cache"));
                continue;
            };
            let (mut progress, mut done) = (Progress::new(), 0);
            let total = image.closure.bytes_here();
            let mut on_hashed = |bytes| {
                done += bytes;
                progress.show("verify", done, total);
            };
            let mut audit = Audit::new(&self.disk.store, &self.disk.names, &mut on_hashed);
            self.image(&mut audit, &image);
        }
        Ok(())
    }

    fn everything(&mut self) -> Result<(), String> {
        let total = self.disk.store.count_blob_bytes();
        let total = total.map_err(|error| error.to_string())?;
        let (mut progress, mut done) = (Progress::new(), 0);
        let mut on_hashed = |bytes| {
            done += bytes;
            progress.show("verify", done, total);
        };
        let disk = self.disk;
        let mut audit = Audit::new(&disk.store, &disk.names, &mut on_hashed);
        holdings(disk).each(&mut |image| self.image(&mut audit, &image));
        let others = audit.others().map_err(|error| error.to_string())?;
        for fault in others.into_iter().chain(audit.files()) {
            self.faults += 1;
            self.say(&fault);
        }
        let (images, complete) = (self.images, self.complete);
        let (faults, blobs) = (self.faults, audit.blob_count());
        self.say(&format!(
            "{images} images, {complete} complete; {blobs} blobs and manifests; {faults} faults"
        ));
        Ok(())
    }

    fn image(&mut self, audit: &mut Audit<'_>, image: &CachedImage<'_>) {
        let picked = self.picked.clone();
        let picks = |platform: &str| picked.picks(platform);
        let mut faults = audit.image(image, &picks);
        if !faults.is_none() {
            // A proxy that runs may have evicted, replaced or fetched it meanwhile.
            audit.forget_faults();
            let reference = image
                .tag
                .clone()
                .map_or_else(|| image.digest.clone().into(), crate::oci::Reference::Tag);
            let Some(again) = holdings(self.disk).find(image.scope, &reference) else {
                return;
            };
            faults = audit.image(&again, &picks);
        }
        self.images += 1;
        self.complete += usize::from(faults.is_none());
        self.faults += usize::from(!faults.is_none());
        self.report(&image.name(), &faults);
        if let Some(tag) = &image.tag {
            self.say_moves(image.scope.registry, |moved| {
                moved.repository == image.scope.repository.as_str() && moved.tag == tag.as_str()
            });
        }
    }

    /// Says where tags of a registry have moved.
    fn say_moves(&mut self, registry: &Registry, picks: impl Fn(&TagMove) -> bool) {
        let moves = self.disk.names.moves(registry);
        let moves = moves.iter().filter(|moved| picks(moved));
        for moved in moves.take(MOVES_SHOWN) {
            let TagMove { at, from, to, .. } = moved;
            self.say(&format!("  at {at} the tag moved from {from} to {to}"));
        }
    }

    fn report(&mut self, name: &str, faults: &ImageFaults) {
        let verdict = match faults {
            faults if faults.is_none() => "complete",
            faults if faults.damaged > 0 => "damaged",
            faults if faults.broken.is_empty() => "partial",
            _ => "incomplete",
        };
        self.say(&format!("{name} {verdict}"));
        for (platform, manifest) in &faults.absent {
            self.say(&format!("  {platform}: not here, missing {manifest}"));
        }
        for fault in &faults.broken {
            self.say(&format!("  {fault}"));
        }
    }

    /// Prints a line; a reader that has gone has seen what it wanted.
    fn say(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}");
    }
}

/// Removes images, and what nothing else needs.
pub(super) fn remove(
    settings: &Settings,
    words: &[String],
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let names: Result<Vec<ImageName>, String> = words.iter().map(|word| word.parse()).collect();
    let names = match names {
        Ok(names) => names,
        Err(why) => return complain(err, Format::Text, &[why]),
    };
    let opened = directory(settings)
        .and_then(|directory| Store::open(&directory).map_err(|error| error.to_string()));
    let disk = match opened {
        Ok(store) => Disk::new(store, settings.cache_max_size),
        Err(why) => return fail(out, err, &format!("remove: {why}\n")),
    };
    disk.sweeper.pin(app::pins(settings));
    let mut code = EXIT_OK;
    for name in &names {
        let removed = registry_of(settings, &disk.names, name).and_then(|registry| {
            let scope = Scope {
                registry: &registry,
                repository: name.repository(),
            };
            disk.sweeper.remove(scope, name.reference())
        });
        let line = match removed {
            Ok(freed) => format!("{name} removed, {} freed\n", bytes(freed)),
            Err(why) => {
                code = EXIT_FAILED;
                format!("{name} stays: {why}\n")
            }
        };
        print(out, err, &line);
    }
    disk.sweeper.write_all();
    code
}

fn directory(settings: &Settings) -> Result<std::path::PathBuf, String> {
    app::cache_directory(settings).ok_or_else(|| "there is no cache: set CACHE_DIR".to_owned())
}

/// Opens the cache for reading, beside a proxy that may use it.
fn open(settings: &Settings) -> Result<Disk, String> {
    let store = Store::open_read_only(&directory(settings)?);
    let store = store.map_err(|error| error.to_string())?;
    Ok(Disk::new(store, settings.cache_max_size))
}

fn holdings(disk: &Disk) -> Holdings<'_> {
    Holdings {
        store: &disk.store,
        names: &disk.names,
    }
}

/// The registry that an image's name means: one of `ECR`, else the host itself; without a host the
/// first one, or the one that the cache remembers.
fn registry_of(settings: &Settings, names: &Names, name: &ImageName) -> Result<Registry, String> {
    let registries = settings.registries.iter();
    let known = registries
        .enumerate()
        .find(|(at, registry)| name.is_in(registry, *at == 0));
    match (known, name.host()) {
        (Some((_, registry)), _) => Ok(registry.clone()),
        (None, Some(host)) => host.parse().map_err(|why: &str| format!("{name}: {why}")),
        (None, None) => names
            .remembered_registry()
            .ok_or_else(|| format!("{name} names no registry: set ECR, or write HOST/{name}")),
    }
}
