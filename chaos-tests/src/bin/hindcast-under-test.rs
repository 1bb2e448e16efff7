//! The real `hindcast`, built beside the tests that kill it.

use std::process::ExitCode;

fn main() -> ExitCode {
    hindcast::main()
}
