//! Files of `file_sd_configs`: lists of targets with labels, as YAML or JSON.

use crate::config::Group;

/// Of one file.
pub const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Files that all patterns together may name.
pub const FILES_MAX: usize = 10_000;
/// The label that says from which file a target is.
pub const FILE_LABEL: &str = "__meta_filepath";

/// Reads a file; `path` tells by its end how it is written, and is put on each group.
pub fn parse(path: &str, text: &str) -> Result<Vec<Group>, String> {
    if text.len() > FILE_BYTES_MAX {
        return Err(format!("it takes more than {FILE_BYTES_MAX} bytes"));
    }
    let read = match path.ends_with(".json") {
        true => serde_json::from_str(text).map_err(|e| e.to_string()),
        // An empty file is a list of nothing.
        false => serde_norway::from_str::<Option<Vec<Group>>>(text)
            .map(Option::unwrap_or_default)
            .map_err(|e| e.to_string()),
    };
    let mut groups: Vec<Group> = read.map_err(|why| {
        format!("{why}; it is a list of targets with labels, like [{{\"targets\": [\"host:9100\"], \"labels\": {{}}}}]")
    })?;
    for group in &mut groups {
        group.labels.insert(FILE_LABEL.to_owned(), path.to_owned());
    }
    Ok(groups)
}

/// Whether `name` fits a pattern in which `*` stands for any characters.
pub fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    // The first place for each part leaves the most room for the others.
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_say_the_same() {
        let json = r#"[{"targets": ["a:1", "b:1"], "labels": {"rack": "7"}}, {"targets": ["c:1"]}]"#;
        let yaml = "- targets: [a:1, b:1]\n  labels: {rack: 7}\n- targets: [c:1]\n";
        let (j, mut y) = (parse("x.json", json).unwrap(), parse("x.yml", yaml).unwrap());
        assert_eq!(y[1].labels[FILE_LABEL], "x.yml");
        for group in &mut y {
            group.labels.insert(FILE_LABEL.to_owned(), "x.json".to_owned());
        }
        assert_eq!(j, y);
        assert_eq!(parse("x.yml", "").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (path, text, says) in [
            ("x.json", r#"[{"target": ["a"]}]"#, "target"),
            ("x.json", r#"{"targets": []}"#, "a list of targets"),
            ("x.yml", "- targets: {a: b}", "a list of targets"),
            ("x.json", "", "a list of targets"),
        ] {
            let said = parse(path, text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
        assert!(parse("x.yml", &" ".repeat(FILE_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, fit) in [
            ("*.yml", "a.yml", true),
            ("a*b*c", "axxbyc", true),
            ("*", "", true),
            ("a", "a", true),
            ("a*a", "a", false),
            ("*.yml", "a.yaml", false),
            ("a*", "b", false),
            ("a", "ab", false),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }

    proptest! {
        /// Against the same question put to the regex engine.
        #[test]
        fn stars_are_as_in_a_regex(pattern in "[ab*]{0,8}", name in "[ab]{0,10}") {
            let regex = regex::Regex::new(&format!("^{}$", pattern.replace('*', ".*"))).unwrap();
            prop_assert_eq!(fits(&pattern, &name), regex.is_match(&name));
        }
    }
}
