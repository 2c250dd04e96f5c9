//! Arguments → settings → `app::run` → exit code; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    aws_ecr_proxy::cli::main()
}
