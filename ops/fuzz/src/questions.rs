//! What nodes ask each other of shards, and what they answer, as fuzz targets.

use hindcast_env::fuzz::Target;
use hindcast_model::{Labels, Matcher, Owner, Sample, Slot, TenantId, TimestampNs};
use hindcast_query::shards::{Budget, LabelsRequest, LinesRequest, SeriesRequest};
use hindcast_query::wire::{Answer, Closing, Question};
use hindcast_storage::logs::Filter;
use hindcast_storage::read::{Direction, LabelTexts, SeriesData};
use std::sync::Arc;

pub const TARGETS: &[Target] = &[
    Target {
        name: "query-question",
        run: question,
        seeds: question_seeds,
    },
    Target {
        name: "query-answer",
        run: answer,
        seeds: answer_seeds,
    },
];

/// What is read is written in the same words again.
fn question(bytes: &[u8]) {
    if let Ok(question) = Question::decode(bytes) {
        let again = Question::decode(&question.encode()).expect("what was read can be asked");
        assert_eq!(again.encode(), question.encode(), "{question:?} is asked otherwise");
    }
}

fn questions() -> Vec<Question> {
    let (tenant, from, to) = (TenantId::default(), TimestampNs(-1), TimestampNs(1));
    let matchers = vec![Matcher::equal("a", "é가")];
    let filter = Filter::And(vec![Filter::contains(b"x").negated(), Filter::Or(vec![])]);
    vec![
        Question::Series(SeriesRequest {
            tenant: tenant.clone(),
            matchers: matchers.clone(),
            from,
            to,
            as_of: None,
            owners: None,
            only: None,
            budget: Arc::new(Budget::new(9, 9)),
        }),
        Question::Lines(LinesRequest {
            tenant: tenant.clone(),
            matchers: matchers.clone(),
            from,
            to,
            as_of: None,
            owners: None,
            filter,
            limit: Some(3),
            direction: Direction::Backward,
        }),
        Question::LabelTexts(
            LabelsRequest {
                tenant,
                streams: true,
                any_of: vec![matchers, vec![]],
                from,
                to,
            },
            LabelTexts::Values("a".into()),
        ),
    ]
}

fn question_seeds() -> Vec<Vec<u8>> {
    questions().iter().map(|q| q.encode().to_vec()).collect()
}

fn answer(bytes: &[u8]) {
    for question in questions() {
        let _ = question.nothing().take(bytes);
    }
}

fn answer_seeds() -> Vec<Vec<u8>> {
    let mut pieces = vec![Closing::default().encode().to_vec()];
    let series = SeriesData {
        labels: Labels::from_pairs([("a", "b")]),
        owner: Owner::None,
        slot: Slot(7),
        samples: vec![Sample {
            at: TimestampNs(1),
            value: f64::NAN,
        }],
        has_lasts: true,
    };
    let texts = Answer::LabelTexts(vec!["a".into(), "é가".into()]);
    for answer in [Answer::Series(vec![series]), texts] {
        answer.send(&mut |piece| {
            pieces.push(piece.to_vec());
            true
        });
    }
    pieces
}
