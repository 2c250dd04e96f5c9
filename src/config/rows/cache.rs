//! Rows of the table: the cache. Pure data.

use crate::config::cache;
use crate::config::table::Kind::*;
use crate::config::table::Preset::{Unset, Value};
use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    row(
        "CACHE_DIR",
        Unset("`$CACHE_DIRECTORY`, else `/cache` if it exists, else off"),
        File(|s, path| s.cache_dir = cache::directory(path)),
        "Directory of the cache, an OCI image layout; `off` for none.",
    ),
    row(
        "CACHE_MAX_SIZE",
        Value("75g"),
        Text(
            Unit::Size,
            "a whole number of bytes, or with a unit such as k, m, g, t or GiB",
            |s, text| put(&mut s.cache_max_size, cache::max_size(text)),
        ),
        "Quota on disk, downloads in progress included.",
    ),
    row(
        "CACHE_KEY",
        Value("$uri"),
        Text(Unit::Text, "a template", |s, text| {
            put(&mut s.cache_key, cache::key(text))
        }),
        "Template that partitions tag entries, of nginx's `$uri $host $scheme $args $is_args \
         $request_uri $request_method $http_NAME`.",
    ),
    row(
        "CACHE_TAG_TTL",
        Value("15s"),
        Text(Unit::Time, "a time such as 15s, or forever", |s, text| {
            put(&mut s.cache_tag_ttl, cache::tag_ttl(text))
        }),
        "How long a tag is served without asking upstream; `0s` always asks, `forever` never.",
    ),
    row(
        "FILL_REFERRERS",
        Value("false"),
        Switch(|s, on| s.fill_referrers = on),
        "Fetch what refers to an image (signatures, attestations, SBOMs) when the image comes \
         into the cache, so that it can be verified offline.",
    ),
    row(
        "PREFETCH",
        Unset("none"),
        Later(Unit::List, Accepts::Nothing),
        "Images kept fresh in the cache.",
    ),
    row(
        "PREFETCH_INTERVAL",
        Value("15m"),
        Later(Unit::Time, Accepts::Nothing),
        "Time between two rounds of it.",
    ),
    row(
        "PREFETCH_PLATFORMS",
        Unset("all"),
        Later(Unit::List, Accepts::Nothing),
        "Platforms that it fetches.",
    ),
    row(
        "PIN",
        Unset("what `PREFETCH` names"),
        Later(Unit::List, Accepts::Nothing),
        "Globs of images that eviction never touches.",
    ),
    row(
        "SCRUB_INTERVAL",
        Value("168h"),
        Later(Unit::Time, Accepts::Only(&["0s"])),
        "Time for one whole re-hash of the cache; `0s` is off.",
    ),
];
