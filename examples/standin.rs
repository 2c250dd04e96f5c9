//! The bundled stand-in registry.
fn main() {}
