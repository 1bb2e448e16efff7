//! What the shipped types find in files of logs: lines, matches by type, and with `--show` the lines they are in.
//!
//! How often lines without personal data are taken for such: run it over logs that have none.
//!
//!     cargo run -p hindcast-masking --example found -- [--show] FILE…

use hindcast_masking::{Counts, Masking, Settings};
use std::collections::BTreeMap;

fn main() {
    let (flags, files): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|a| a.starts_with("--"));
    let show = flags.iter().any(|f| f == "--show");
    let masking = Masking::new(Settings::default(), &Counts::default()).expect("the default settings are good");
    let masker = masking.all();
    let (mut lines_in_all, mut hit_in_all) = (0, 0);
    for file in &files {
        #[allow(clippy::disallowed_methods, reason = "a tool reads the files it is told")]
        let text = match std::fs::read(file) {
            Ok(text) => text,
            Err(e) => {
                eprintln!("{file} cannot be read: {e}");
                std::process::exit(2);
            }
        };
        let (mut lines, mut hit) = (0, 0);
        let mut by_type = BTreeMap::<&str, u64>::new();
        for line in text.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            lines += 1;
            let masked = masker.preview(line);
            if masked.found.is_empty() {
                continue;
            }
            hit += 1;
            for found in &masked.found {
                *by_type.entry(masker.name(found)).or_default() += 1;
            }
            if show {
                println!("{}", String::from_utf8_lossy(&masked.text));
            }
        }
        println!("{file}: {hit} of {lines} lines, {by_type:?}");
        lines_in_all += lines;
        hit_in_all += hit;
    }
    println!("in all: {hit_in_all} of {lines_in_all} lines");
}
