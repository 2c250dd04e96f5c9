//! Rows of the table: the cache. Pure data.

use crate::config::cache;
use crate::config::table::*;

pub(super) static ROWS: &[Setting] = &[
    Setting {
        name: "CACHE_DIR",
        group: Group::Cache,
        preset: Preset::Unset("`$CACHE_DIRECTORY`, else `/cache` if it exists, else off"),
        meaning: "Directory of the cache, an OCI image layout; `off` for none.",
        state: text(Unit::Path, "a path, or off", cache::directory),
        ..ROW
    },
    Setting {
        name: "CACHE_MAX_SIZE",
        group: Group::Cache,
        preset: Preset::Value("75g"),
        meaning: "Quota on disk, downloads in progress included.",
        state: text(
            Unit::Size,
            "a whole number of bytes, or with k, m or g",
            cache::max_size,
        ),
        ..ROW
    },
    Setting {
        name: "CACHE_KEY",
        group: Group::Cache,
        preset: Preset::Value("$uri"),
        meaning: "Template that partitions tag entries, of nginx's `$uri $host $scheme $args \
                  $is_args $request_uri $request_method $http_NAME`.",
        state: text(Unit::Text, "a template", cache::key),
        ..ROW
    },
    Setting {
        name: "CACHE_TAG_TTL",
        group: Group::Cache,
        preset: Preset::Value("15s"),
        meaning: "How long a tag is served without asking upstream; `0s` always asks, `forever` \
                  never.",
        state: text(Unit::Time, "a time such as 15s, or forever", cache::tag_ttl),
        ..ROW
    },
    Setting {
        name: "FILL_REFERRERS",
        group: Group::Cache,
        preset: Preset::Value("false"),
        meaning: "Fetch what refers to an image (signatures, attestations, SBOMs) when the image \
                  comes into the cache, so that it can be verified offline.",
        state: State::Built(Kind::Switch(|settings, on| settings.fill_referrers = on)),
        ..ROW
    },
    Setting {
        name: "PREFETCH",
        group: Group::Cache,
        preset: Preset::Unset("none"),
        meaning: "Images kept fresh in the cache.",
        state: later(Unit::List, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "PREFETCH_INTERVAL",
        group: Group::Cache,
        preset: Preset::Value("15m"),
        meaning: "Time between two rounds of it.",
        state: later(Unit::Time, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "PREFETCH_PLATFORMS",
        group: Group::Cache,
        preset: Preset::Unset("all"),
        meaning: "Platforms that it fetches.",
        state: later(Unit::List, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "PIN",
        group: Group::Cache,
        preset: Preset::Unset("what `PREFETCH` names"),
        meaning: "Globs of images that eviction never touches.",
        state: later(Unit::List, Accepts::Nothing),
        ..ROW
    },
    Setting {
        name: "SCRUB_INTERVAL",
        group: Group::Cache,
        preset: Preset::Value("168h"),
        meaning: "Time for one whole re-hash of the cache; `0s` is off.",
        state: later(Unit::Time, Accepts::Only(&["0s"])),
        ..ROW
    },
];
