//! `AUTH_FILE`, and the patterns of `ALLOW_REPOSITORIES`: the first line is the list, the rest a
//! file; each of its names is held against the patterns.
#![no_main]

use aws_ecr_proxy::config::Globs;
use aws_ecr_proxy::proxy::login::htpasswd::Users;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (list, file) = text.split_once('\n').unwrap_or((text, text));
    let globs = Globs::parse(list);
    if let Ok(globs) = &globs {
        assert!(!globs.match_everything() || globs.matches("any/name"));
    }
    let names = file
        .trim_start_matches('\u{feff}')
        .lines()
        .filter_map(|line| line.split(':').next());
    for name in names.clone().filter(|name| name.len() <= 256).take(16) {
        let _ = globs.as_ref().map(|globs| globs.matches(name));
    }
    match Users::parse(file) {
        Ok(users) => {
            assert!(users.count() > 0);
            let known = names.filter(|name| users.has(name.trim())).count();
            assert!(known > 0, "no name of the file is known");
        }
        Err(fault) => {
            // The length of a bcrypt hash, without what it begins with.
            let hashes = file.lines().filter_map(|line| line.split_once(':'));
            let mut hashes = hashes.filter(|(_, hash)| hash.len() >= 53);
            assert!(!hashes.any(|(_, hash)| fault.contains(hash)), "a hash in {fault}");
        }
    }
});
