//! `PREFETCH`: the thread that keeps images fresh. Owns: its rounds. Must not: know how an image is
//! fetched.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::build;
use super::threads::{self, OnLost};
use crate::cache::Cache;
use crate::config::{PrefetchList, PrefetchSettings, Settings};
use crate::image_name::ImageName;
use crate::log::{self, Level};
use crate::prefetched::{PREFETCHED, PrefetchedImage};
use crate::proxy::Proxy;
use crate::proxy::fetch::ImageFetch;
use crate::proxy::purpose::Purpose;
use crate::random::unguessable;

/// Stack of the thread: what a connection's thread does, and JSON.
const STACK_BYTES: usize = 512 * 1024;
/// The first round begins within so long after the start: nodes that start at the same time do not
/// ask at the same time.
const JITTER_MAX: Duration = Duration::from_secs(10);
/// A tenth of the interval, at most, is added to each pause, for the same reason.
const JITTER_PART: u32 = 10;

/// Starts the thread, if there is anything to prefetch.
///
/// # Errors
/// When the system refuses it.
pub(super) fn start(
    settings: &Settings,
    proxy: &Proxy,
    cache: Option<&Arc<Cache>>,
    on_lost: &OnLost,
) -> Result<(), String> {
    if settings.prefetch.images == PrefetchList::Nothing || settings.offline {
        return Ok(());
    }
    let Some(cache) = cache else {
        log::warn("nothing is prefetched: there is no cache", &[]);
        return Ok(());
    };
    PREFETCHED.change(|_| {});
    let (settings, proxy, cache) = (settings.clone(), proxy.clone(), Arc::clone(cache));
    let work = move || run(&proxy, &settings, &cache);
    threads::start_vital("prefetch", STACK_BYTES, on_lost, work)
}

/// The work of the thread; never returns.
fn run(proxy: &Proxy, all: &Settings, cache: &Cache) -> ! {
    let settings = &all.prefetch;
    thread::sleep(jitter(JITTER_MAX.min(settings.interval)));
    loop {
        match settings.images.read() {
            Ok(names) => {
                // The list may have changed.
                let pins = build::pins_with(all, names.clone());
                cache.sweeper.pin(pins);
                run_round(proxy, settings, &names);
            }
            Err(why) => {
                let what = "images to prefetch cannot be read";
                log::cause(Level::Warn, what, ("error", &why), &[]);
                PREFETCHED.change(|round| round.list_error = Some(why));
            }
        }
        let pause = settings.interval + jitter(settings.interval / JITTER_PART);
        PREFETCHED.change(|round| round.next = Some(Instant::now() + pause));
        thread::sleep(pause);
    }
}

fn run_round(proxy: &Proxy, settings: &PrefetchSettings, names: &[ImageName]) {
    let begun = Instant::now();
    PREFETCHED.change(|round| {
        (round.next, round.list_error) = (None, None);
        let before = std::mem::take(&mut round.images);
        round.images = names
            .iter()
            .map(|name| keep(&before, name.to_string()))
            .collect();
    });
    let (mut failed, mut blobs, mut bytes) = (0_usize, 0, 0);
    for (at, name) in names.iter().enumerate() {
        PREFETCHED.change(|round| round.running = Some(name.to_string()));
        let fetched = proxy.fetch(&ImageFetch {
            name,
            platforms: &settings.platforms,
            purpose: Purpose::Prefetch,
            progress: &|_, _| {},
        });
        let error = (!fetched.faults.is_empty()).then(|| fetched.faults.join("; "));
        let fields: [log::Field<'_>; 3] = [
            ("image", name),
            ("blobs", &fetched.blobs),
            ("bytes", &fetched.bytes),
        ];
        match &error {
            Some(why) => {
                failed += 1;
                let what = "image not prefetched";
                log::cause(Level::Warn, what, ("error", why), &fields[..1]);
            }
            None if fetched.blobs > 0 => log::info("image prefetched", &fields),
            None => {}
        }
        (blobs, bytes) = (blobs + fetched.blobs, bytes + fetched.bytes);
        PREFETCHED.change(|round| {
            round.running = None;
            if let Some(image) = round.images.get_mut(at) {
                image.digest = fetched.digest.map(|digest| digest.to_string());
                image.confirmed = error.is_none().then(SystemTime::now).or(image.confirmed);
                image.error = error;
            }
        });
    }
    PREFETCHED.change(|round| round.rounds += 1);
    let fields: [log::Field<'_>; 5] = [
        ("images", &names.len()),
        ("images_failed", &failed),
        ("blobs", &blobs),
        ("bytes", &bytes),
        ("ms", &begun.elapsed().as_millis()),
    ];
    log::info("prefetch round ended", &fields);
}

/// An image as the round before left it.
fn keep(before: &[PrefetchedImage], name: String) -> PrefetchedImage {
    let known = before.iter().find(|image| image.name == name).cloned();
    known.unwrap_or_else(|| PrefetchedImage {
        name,
        ..PrefetchedImage::default()
    })
}

fn jitter(most: Duration) -> Duration {
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(unguessable() % most.max(1))
}
