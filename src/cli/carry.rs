//! `pull`, `export` and `import`: images carried to a place without a network. Owns: their output.
//! Must not: know what is in a layout, or how an image is fetched.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::invocation::{CommandFault, Invocation};
use super::output::Streams;
use super::progress::{Progress, bytes};
use crate::app::CacheFiller;
use crate::cache::archive::Archive;
use crate::cache::export::Exporter;
use crate::cache::import::{ImportImage, Importer, Naming, OTHERS_TIMEOUT};
use crate::cache::names::OwnedScope;
use crate::cache::store::Store;
use crate::config::{EXIT_FAILED, EXIT_OK, Settings};
use crate::image_name::ImageName;
use crate::locked::Locked as _;
use crate::log::{self, Level};
use crate::platforms::Platforms;
use crate::proxy::fetch::ImageFetch;
use crate::proxy::purpose::Purpose;

/// Longest wait for the last log lines at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Fetches images into the cache.
pub(super) fn pull(command: Invocation<'_>, streams: &mut Streams<'_>) -> Result<u8, CommandFault> {
    let (names, platforms) = command.images(&Platforms::default())?;
    quieten(command.settings);
    let filler = CacheFiller::open(command.settings);
    let filler = filler.inspect_err(|_| log::flush(FLUSH_TIMEOUT))?;
    let mut code = EXIT_OK;
    for name in &names {
        let (step, progress) = (name.to_string(), Mutex::new(Progress::new()));
        let fetched = filler.fetch(&ImageFetch {
            name,
            platforms: &platforms,
            purpose: Purpose::Pull,
            progress: &|done, total| progress.locked().show(&step, done, total),
        });
        drop(progress);
        let line = match (&fetched.digest, fetched.faults.as_slice()) {
            (Some(digest), []) => {
                let (count, size) = (fetched.blobs, bytes(fetched.bytes));
                format!("{name}: complete as {digest}; {count} blobs fetched, {size}\n")
            }
            (_, faults) => {
                code = EXIT_FAILED;
                format!("{name}: failed: {}\n", faults.join("\n  "))
            }
        };
        code = code.max(streams.print(&line));
    }
    filler.close();
    log::flush(FLUSH_TIMEOUT);
    Ok(code)
}

/// Writes images of the cache as a layout. Changes nothing in the cache.
pub(super) fn export(
    command: Invocation<'_>,
    streams: &mut Streams<'_>,
) -> Result<u8, CommandFault> {
    let to = command.value("--to").ok_or_else(|| {
        CommandFault::Usage(vec!["export: expected --to DIR or --to FILE.tar".into()])
    })?;
    let (names, platforms) = command.images(&Platforms::default())?;
    let disk = command.open_cache(Store::open_read_only)?;
    let mut images = Vec::new();
    for name in &names {
        let scope = command.scope_of(&disk.names, name)?;
        images.push((scope, name.reference().clone()));
    }
    let stop = stopped_by_signals().map_err(|error| error.to_string())?;
    let exporter = Exporter {
        disk: &disk,
        platforms: &platforms,
        stop: &stop,
    };
    let since = command.value("--since").map(Path::new);
    let place = |path: &Path| path.canonicalize().ok();
    if since
        .and_then(place)
        .is_some_and(|since| place(Path::new(to)) == Some(since))
    {
        let why = format!("export: --to={to}: is what --since names, and would be lost");
        return Err(CommandFault::Usage(vec![why]));
    }
    let plan = exporter.plan(&images, since)?;
    let mut progress = Progress::new();
    exporter.write(&plan, Path::new(to), &mut |step, done, total| {
        progress.show(step, done, total);
    })?;
    drop(progress);
    for left_out in &plan.left_out {
        streams.note(&format!("left out: {left_out}"));
    }
    let (count, size) = (plan.blob_count(), bytes(plan.bytes()));
    let known = match plan.known {
        0 => String::new(),
        known => format!("; the other side has {known} more"),
    };
    Ok(streams.print(&format!(
        "{to}: {count} blobs and manifests, {size}{known}\n"
    )))
}

/// True once SIGINT or SIGTERM has come. A second one ends the process at once.
fn stopped_by_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let code = i32::from(EXIT_FAILED);
        flag::register_conditional_shutdown(signal, code, Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Takes a layout into the cache.
pub(super) fn import(
    command: Invocation<'_>,
    streams: &mut Streams<'_>,
) -> Result<u8, CommandFault> {
    let mut naming = read_naming(command.value("--as"))?;
    let from = command.word().unwrap_or_default();
    quieten(command.settings);
    let disk = command.open_cache(Store::open)?;
    disk.sweeper.count();
    naming.default = command.default_registry(&disk.names);
    let imported = Archive::open(Path::new(from)).and_then(|archive| {
        let mut progress = Progress::new();
        let importer = Importer {
            disk: &disk,
            archive: &archive,
            frozen: &command.settings.freeze_tags,
            patience: OTHERS_TIMEOUT,
        };
        importer.import(&naming, &mut |step, done, total| {
            progress.show(step, done, total);
        })
    });
    // Images before one that failed are here.
    disk.sweeper.write_all();
    let images = imported.map_err(|why| format!("{from}: {why}"))?;
    for image in &images {
        if is_unserved(command.settings, image) {
            let (name, registry) = (&image.name, &image.scope.registry);
            streams.note(&format!(
                "{name}: {registry} is not in ECR, so no client gets the image; see --as"
            ));
        }
    }
    let lines: String = images.iter().map(describe_imported).collect();
    Ok(streams.print(&lines))
}

fn describe_imported(image: &ImportImage) -> String {
    let name = &image.name;
    match image.absent.as_slice() {
        [] => format!("{name}: complete\n"),
        absent => format!(
            "{name}: without {}, which the layout lacks\n",
            absent.join(", ")
        ),
    }
}

/// True for an image that the proxy with these settings serves to nobody.
fn is_unserved(settings: &Settings, image: &ImportImage) -> bool {
    let name = image.scope.registry.name();
    let mut served = settings.registries.iter();
    !settings.registries.is_empty()
        && !served.any(|registry| registry.name() == name)
        && !image.is_referrer()
}

/// Lets the log show faults alone: its other lines are for a proxy that serves.
fn quieten(settings: &Settings) {
    log::init(settings.log_level.max(Level::Warn), settings.log_format);
    log::hook_panics();
}

/// `--as`
fn read_naming(text: Option<&str>) -> Result<Naming, CommandFault> {
    let Some(text) = text else {
        return Ok(Naming::default());
    };
    let fault = |why: &str| CommandFault::Usage(vec![format!("--as={text}: {why}")]);
    let name: ImageName = text.parse().map_err(|why: String| fault(&why))?;
    let expected = "expected REGISTRY/REPOSITORY[:TAG] (a REGISTRY has a dot or a port)";
    let host = name.host().filter(|_| name.digest().is_none());
    let registry = host
        .ok_or_else(|| fault(expected))?
        .parse()
        .map_err(fault)?;
    let last = text.rsplit('/').next().unwrap_or_default();
    Ok(Naming {
        scope: Some(OwnedScope {
            registry,
            repository: name.repository().clone(),
        }),
        tag: name.tag().cloned().filter(|_| last.contains(':')),
        default: None,
    })
}
