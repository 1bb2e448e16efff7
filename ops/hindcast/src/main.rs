//! The thin end of `hindcast`: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    hindcast::main()
}
