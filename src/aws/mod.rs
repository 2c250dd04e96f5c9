//! The AWS side.
