//! `pull`, `export` and `import`: images carried to a place without a network. Owns: their words.
//! Must not: know what is in a layout, or how an image is fetched.

use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::output::{complain, fail, print};
use super::progress::{Progress, bytes};
use crate::app::{self, CacheFiller};
use crate::cache::archive::Archive;
use crate::cache::disk::Disk;
use crate::cache::export::Exporter;
use crate::cache::import::{ImportImage, Importer, Naming};
use crate::cache::names::Scope;
use crate::cache::store::Store;
use crate::config::{Arguments, EXIT_OK, Settings};
use crate::image_name::ImageName;
use crate::locked::Locked as _;
use crate::log::{self, Format, Level};
use crate::oci::Registry;
use crate::platforms::Platforms;
use crate::proxy::fetch::ImageFetch;

/// Longest wait for the last log lines at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Fetches images into the cache.
pub(super) fn pull(
    settings: &Settings,
    words: &[String],
    arguments: &Arguments,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let (names, platforms) = match parse_images(words, arguments) {
        Ok(parsed) => parsed,
        Err(faults) => return complain(err, Format::Text, &faults),
    };
    quieten(settings);
    let filler = match CacheFiller::open(settings) {
        Ok(filler) => filler,
        Err(why) => return fail(out, err, &format!("pull: {why}\n")),
    };
    let mut code = EXIT_OK;
    for name in &names {
        let fetched = {
            let progress = Mutex::new(Progress::new());
            let step = name.to_string();
            filler.fetch(&ImageFetch {
                name,
                platforms: &platforms,
                is_background: false,
                progress: &|done, total| progress.locked().show(&step, done, total),
            })
        };
        let line = match (&fetched.digest, fetched.faults.is_empty()) {
            (Some(digest), true) => {
                let (count, size) = (fetched.blobs, bytes(fetched.bytes));
                format!("{name}: whole as {digest}; {count} blobs fetched, {size}\n")
            }
            _ => format!("{name}: failed: {}\n", fetched.faults.join("\n  ")),
        };
        let ended = match fetched.faults.is_empty() {
            true => print(out, err, &line),
            false => fail(out, err, &line),
        };
        code = code.max(ended);
    }
    filler.close();
    log::flush(FLUSH_TIMEOUT);
    code
}

/// Writes images of the cache as a layout.
pub(super) fn export(
    settings: &Settings,
    words: &[String],
    arguments: &Arguments,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let Some(to) = arguments.value("--to") else {
        let why = "export: expected --to DIR or --to FILE.tar";
        return complain(err, Format::Text, &[why]);
    };
    let (names, platforms) = match parse_images(words, arguments) {
        Ok(parsed) => parsed,
        Err(faults) => return complain(err, Format::Text, &faults),
    };
    let since = arguments.value("--since").map(Path::new);
    let written = open_cache(settings).and_then(|disk| {
        let exporter = Exporter {
            store: &disk.store,
            names: &disk.names,
            platforms: &platforms,
        };
        let registries = find_registries(settings, &disk, &names)?;
        let images = names.iter().zip(&registries).map(|(name, registry)| {
            let repository = name.repository();
            (
                Scope {
                    registry,
                    repository,
                },
                name.reference().clone(),
            )
        });
        let plan = exporter.plan(&images.collect::<Vec<_>>(), since)?;
        let mut progress = Progress::new();
        exporter.write(&plan, Path::new(to), &mut |step, done, total| {
            progress.show(step, done, total);
        })?;
        Ok(plan)
    });
    match written {
        Ok(plan) => {
            for left_out in &plan.left_out {
                let _ = writeln!(err, "aws-ecr-proxy: left out: {left_out}");
            }
            let (count, size) = (plan.blob_count(), bytes(plan.bytes()));
            let known = match plan.known {
                0 => String::new(),
                known => format!("; the other side has {known} more"),
            };
            print(
                out,
                err,
                &format!("{to}: {count} blobs and manifests, {size}{known}\n"),
            )
        }
        Err(why) => fail(out, err, &format!("export: {why}\n")),
    }
}

/// Takes a layout into the cache.
pub(super) fn import(
    settings: &Settings,
    from: &str,
    arguments: &Arguments,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let naming = match parse_naming(arguments) {
        Ok(naming) => naming,
        Err(why) => return complain(err, Format::Text, &[why]),
    };
    quieten(settings);
    let imported = open_cache(settings).and_then(|disk| {
        disk.sweeper.count();
        let naming = Naming {
            default: default_registry(settings, &disk),
            ..naming
        };
        let imported = import_into(&disk, Path::new(from), &naming, &mut Progress::new());
        imported.map_err(|why| format!("{from}: {why}"))
    });
    match imported {
        Ok(images) => {
            for image in &images {
                if let Some(hint) = describe_unserved(settings, image) {
                    let _ = writeln!(err, "aws-ecr-proxy: {hint}");
                }
            }
            let lines: String = images.iter().map(describe_imported).collect();
            print(out, err, &lines)
        }
        Err(why) => fail(out, err, &format!("import: {why}\n")),
    }
}

fn import_into(
    disk: &Disk,
    from: &Path,
    naming: &Naming,
    progress: &mut Progress,
) -> Result<Vec<ImportImage>, String> {
    let archive = Archive::open(from)?;
    let importer = Importer {
        disk,
        archive: &archive,
    };
    let images = importer.plan(naming)?;
    let total = importer.check(&images, &mut |step, done, total| {
        progress.show(step, done, total)
    })?;
    let mut done = 0;
    for image in &images {
        importer.keep(image, total, &mut done, &mut |step, done, total| {
            progress.show(step, done, total);
        })?;
    }
    disk.sweeper.write_all();
    Ok(images)
}

fn describe_imported(image: &ImportImage) -> String {
    let name = image.name();
    match image.absent.as_slice() {
        [] => format!("{name}: whole\n"),
        absent => format!(
            "{name}: without {}, which the layout lacks\n",
            absent.join(", ")
        ),
    }
}

/// Says so when the proxy with these settings serves no such registry.
fn describe_unserved(settings: &Settings, image: &ImportImage) -> Option<String> {
    let registry = image.registry();
    let mut served = settings.registries.iter();
    let is_served = settings.registries.is_empty() || served.any(|r| r.name() == registry.name());
    (!is_served && !image.is_referrer()).then(|| {
        let name = image.name();
        format!("{name}: {registry} is none of ECR, so that no client gets it; see --as")
    })
}

fn open_cache(settings: &Settings) -> Result<Disk, String> {
    let directory = app::cache_directory(settings).ok_or("there is no cache: set CACHE_DIR")?;
    let store = Store::open(&directory).map_err(|error| error.to_string())?;
    let disk = Disk::new(store, settings.cache_max_size);
    Ok(disk)
}

fn default_registry(settings: &Settings, disk: &Disk) -> Option<Registry> {
    let first = settings.registries.first().cloned();
    first.or_else(|| disk.names.remembered_registry())
}

fn find_registries(
    settings: &Settings,
    disk: &Disk,
    names: &[ImageName],
) -> Result<Vec<Registry>, String> {
    let default = default_registry(settings, disk);
    let find = |name: &ImageName| {
        let Some(host) = name.host() else {
            let why = "names no registry, and ECR is not set";
            return default.clone().ok_or_else(|| format!("{name} {why}"));
        };
        let known = settings
            .registries
            .iter()
            .find(|registry| name.is_in(registry, false));
        let parsed = || host.parse().map_err(|why| format!("{name}: {why}"));
        known.cloned().map_or_else(parsed, Ok)
    };
    names.iter().map(find).collect()
}

/// The log is for those who serve; here it says what goes wrong.
fn quieten(settings: &Settings) {
    log::init(settings.log_level.max(Level::Warn), settings.log_format);
    log::hook_panics();
}

/// The images and platforms that the command line names, or all that is wrong with them.
fn parse_images(
    words: &[String],
    arguments: &Arguments,
) -> Result<(Vec<ImageName>, Platforms), Vec<String>> {
    let (mut names, mut faults) = (Vec::new(), Vec::new());
    for word in words {
        match word.parse() {
            Ok(name) => names.push(name),
            Err(why) => faults.push(why),
        }
    }
    match (parse_platforms(arguments), faults.is_empty()) {
        (Ok(platforms), true) => Ok((names, platforms)),
        (platforms, _) => {
            faults.extend(platforms.err());
            Err(faults)
        }
    }
}

fn parse_platforms(arguments: &Arguments) -> Result<Platforms, String> {
    let text = arguments.value("--platform").unwrap_or("all");
    text.parse()
        .map_err(|why| format!("--platform={text}: {why}"))
}

fn parse_naming(arguments: &Arguments) -> Result<Naming, String> {
    let Some(text) = arguments.value("--as") else {
        return Ok(Naming::default());
    };
    let fault = |why: String| format!("--as={text}: {why}");
    let name: ImageName = text.parse().map_err(fault)?;
    let expected = "expected REGISTRY/REPOSITORY[:TAG] (a REGISTRY has a dot or a port)";
    let host = name.host().filter(|_| name.digest().is_none());
    let host = host.ok_or_else(|| fault(expected.to_owned()))?;
    let registry = host.parse().map_err(|why: &str| fault(why.to_owned()))?;
    let has_tag = text
        .rsplit('/')
        .next()
        .is_some_and(|last| last.contains(':'));
    Ok(Naming {
        place: Some((registry, name.repository().clone())),
        tag: name.tag().cloned().filter(|_| has_tag),
        default: None,
    })
}
