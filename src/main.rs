//! Arguments → settings → `app::run` → exit code; nothing else.

fn main() {}
