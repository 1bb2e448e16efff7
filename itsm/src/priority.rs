//! Priority = impact × urgency. Urgency starts from severity; impact from which services are touched.

use hindcast_alerting::event::Criticality;
use hindcast_model::Severity;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How much, or how soon. The order is low to high.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Low,
    Medium,
    High,
}

impl Level {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Low, Self::Medium, Self::High]
            .into_iter()
            .find(|l| l.as_str() == text)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// P1 is worked on first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Priority {
    P1,
    P2,
    P3,
    P4,
    P5,
}

impl Priority {
    pub const fn of(impact: Level, urgency: Level) -> Self {
        use Level::{High, Low, Medium};
        match (impact, urgency) {
            (High, High) => Self::P1,
            (High, Medium) | (Medium, High) => Self::P2,
            (High, Low) | (Medium, Medium) | (Low, High) => Self::P3,
            (Medium, Low) | (Low, Medium) => Self::P4,
            (Low, Low) => Self::P5,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::P1 => "P1",
            Self::P2 => "P2",
            Self::P3 => "P3",
            Self::P4 => "P4",
            Self::P5 => "P5",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

pub const fn urgency_of(severity: Severity) -> Level {
    match severity {
        Severity::Minor => Level::Low,
        Severity::Major => Level::Medium,
        Severity::Critical => Level::High,
    }
}

/// A critical service or more than one service: high; one high or medium service: medium; else low.
pub fn impact_of(services: impl IntoIterator<Item = Criticality>) -> Level {
    let mut count = 0;
    let mut worst = Criticality::Low;
    for weight in services {
        count += 1;
        worst = worst.max(weight);
    }
    match worst {
        Criticality::Critical => Level::High,
        _ if count > 1 => Level::High,
        Criticality::High | Criticality::Medium => Level::Medium,
        Criticality::Low => Level::Low,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn the_matrix_is_the_one_on_the_page() {
        let mut shown = String::from("impact  high medium low\n");
        for impact in [Level::High, Level::Medium, Level::Low] {
            let row = [Level::High, Level::Medium, Level::Low].map(|u| Priority::of(impact, u).to_string());
            shown += &format!("{:7} {}\n", impact.as_str(), row.join(" "));
        }
        expect![[r#"
            impact  high medium low
            high    P1 P2 P3
            medium  P2 P3 P4
            low     P3 P4 P5
        "#]]
        .assert_eq(&shown);
    }

    #[test]
    fn impact_follows_weight_and_reach() {
        use Criticality::{Critical, High, Low, Medium};
        for (services, impact) in [
            (vec![], Level::Low),
            (vec![Low], Level::Low),
            (vec![Medium], Level::Medium),
            (vec![High], Level::Medium),
            (vec![Critical], Level::High),
            (vec![Low, Low], Level::High),
        ] {
            assert_eq!(impact_of(services.clone()), impact, "{services:?}");
        }
    }
}
