//! What a regex says about the values that it can match, so that the index is asked for those only.
//!
//! Every plan but `All` and a sure prefix may name too many values, never too few: what it names is still matched.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::literal::{ExtractKind, Extractor, Seq};
use regex_syntax::hir::{Dot, Hir, HirKind};

/// Literals followed; more of them, and all values are looked at.
const LITERALS_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Every value that is not empty.
    All,
    /// Only these; sorted.
    Exactly(Vec<Vec<u8>>),
    /// Only values that begin with one of these; sorted, none begins with another. `sure`: all those match.
    Prefixes { of: Vec<Vec<u8>>, sure: bool },
    /// Any value may match.
    Scan,
}

impl Plan {
    /// Of a matcher's pattern, which stands for a whole value.
    pub fn of(pattern: &str) -> Self {
        // The pattern alone must be a regex: one that only the matcher's own brackets complete means something else.
        let Ok(hir) = ParserBuilder::new().dot_matches_new_line(true).build().parse(pattern) else {
            return Self::Scan;
        };
        if is_anything(&hir, 1) {
            return Self::All;
        }
        if let HirKind::Concat(parts) = hir.kind()
            && let [head, tail] = &parts[..]
            && let HirKind::Literal(prefix) = head.kind()
            && is_anything(tail, 0)
        {
            return Self::Prefixes {
                of: vec![prefix.0.to_vec()],
                sure: true,
            };
        }
        let mut extractor = Extractor::new();
        extractor.kind(ExtractKind::Prefix).limit_total(LITERALS_MAX);
        Self::of_literals(&extractor.extract(&hir))
    }

    fn of_literals(seq: &Seq) -> Self {
        let Some(literals) = seq.literals() else {
            return Self::Scan;
        };
        let mut texts: Vec<Vec<u8>> = literals.iter().map(|l| l.as_bytes().to_vec()).collect();
        texts.sort_unstable();
        texts.dedup();
        if seq.is_exact() {
            return Self::Exactly(texts);
        }
        if texts.iter().any(Vec::is_empty) {
            return Self::Scan;
        }
        // What begins with a longer one begins with the shorter one too. Such neighbours follow each other.
        texts.dedup_by(|later, kept| later.starts_with(kept));
        Self::Prefixes { of: texts, sure: false }
    }
}

/// `.*`, or `.+` if `min_max` is 1.
fn is_anything(hir: &Hir, min_max: u32) -> bool {
    match hir.kind() {
        HirKind::Capture(c) => is_anything(&c.sub, min_max),
        HirKind::Repetition(r) => r.min <= min_max && r.max.is_none() && *r.sub == Hir::dot(Dot::AnyChar),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use hindcast_model::{MatchOp, Matcher};
    use proptest::prelude::*;

    fn check(pattern: &str, expect: Expect) {
        let show = |of: &[Vec<u8>]| {
            let texts: Vec<_> = of.iter().map(|t| String::from_utf8_lossy(t)).collect();
            texts.join(" ")
        };
        expect.assert_eq(&match Plan::of(pattern) {
            Plan::All => "all".to_owned(),
            Plan::Exactly(of) => format!("exactly: {}", show(&of)),
            Plan::Prefixes { of, sure: true } => format!("surely: {}", show(&of)),
            Plan::Prefixes { of, sure: false } => format!("prefixes: {}", show(&of)),
            Plan::Scan => "scan".to_owned(),
        });
    }

    #[test]
    fn a_plan_follows_from_how_a_pattern_begins() {
        check("a|b|cde", expect!["exactly: a b cde"]);
        check("web-(1|2)", expect!["exactly: web-1 web-2"]);
        check("(?i)ab", expect!["exactly: AB Ab aB ab"]);
        check("web-1", expect!["exactly: web-1"]);
        check("a|", expect!["exactly:  a"]);
        check("", expect!["exactly: "]);
        check(".*", expect!["all"]);
        check("(.+)", expect!["all"]);
        check("svc-1-.*", expect!["surely: svc-1-"]);
        check("svc-1-.+", expect!["prefixes: svc-1-"]);
        check("(svc-1|svc-12|db).*x", expect!["prefixes: db svc-1"]);
        check("svc-[0-3].*", expect!["prefixes: svc-0 svc-1 svc-2 svc-3"]);
        check(".*x.*", expect!["scan"]);
        check("a?b*", expect!["scan"]);
        check("(?-s).*", expect!["scan"]);
        check("a)|(b", expect!["scan"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn a_plan_leaves_no_match_out(
            pattern in "((\\(\\?[is]\\))?([abké]{0,3}|\\[a-k\\]|[(|)]|[.][*+]|[*+?.^$]|\\\\b|[{]2[}])){0,4}",
            values in prop::collection::vec("[abkKA\n]{0,5}|é[abk]{0,2}", 1..20),
        ) {
            let Ok(m) = Matcher::new("x", MatchOp::Regex, &pattern) else { return Ok(()) };
            let plan = Plan::of(&pattern);
            for v in values.iter().filter(|v| !v.is_empty()) {
                let (may, must) = match &plan {
                    Plan::All => (true, true),
                    Plan::Exactly(of) => (of.contains(&v.as_bytes().to_vec()), false),
                    Plan::Prefixes { of, sure } => {
                        let begins = of.iter().any(|p| v.as_bytes().starts_with(p));
                        (begins, *sure && begins)
                    }
                    Plan::Scan => (true, false),
                };
                let matches = m.matches_value(v);
                prop_assert!((may || !matches) && (matches || !must), "{:?} {:?} {:?}", pattern, v, plan);
            }
        }
    }
}
