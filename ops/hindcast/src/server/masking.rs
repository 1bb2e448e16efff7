//! `/api/hindcast/v1/masking`: the types in force, and a preview of what they, or others, would do to a text.
//!
//! A preview stores and logs nothing. It is made on a thread beside those that serve, [`PREVIEWS_MAX`] at a time. Its work is
//! bounded by [`PREVIEW_BYTES_MAX`] and [`PREVIEW_LINES_MAX`], with types that are tried by [`TRIED_BYTES_MAX`]; its answer by
//! [`MATCHES_MAX`].

use axum::Json;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hindcast_masking::{Counts, Found, InForce, Masked, Masking, Settings, TypeInForce, TypeSettings};
use hindcast_model::TenantId;
use hindcast_proto::edge::{TENANT_KEY, tenant_of_header};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Bytes of a preview's request.
pub const PREVIEW_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of lines when patterns are tried: nobody has looked at those yet, and they may be slow.
pub const TRIED_BYTES_MAX: usize = 64 * 1024;
/// Previews that are made at a time; another one waits so long, and is refused then.
pub const PREVIEWS_MAX: usize = 1;
const PREVIEW_WAIT_MAX: Duration = Duration::from_secs(5);
/// Lines of it.
pub const PREVIEW_LINES_MAX: usize = 1000;
/// Matches that an answer lists; further ones are counted.
pub const MATCHES_MAX: usize = 10_000;

pub fn router(masks: Arc<InForce>) -> axum::Router {
    axum::Router::new()
        .route("/api/hindcast/v1/masking", get(in_force))
        .route("/api/hindcast/v1/masking/preview", post(preview))
        .layer(DefaultBodyLimit::max(PREVIEW_BYTES_MAX))
        .with_state(Served {
            masks,
            previews: Arc::new(Semaphore::new(PREVIEWS_MAX)),
            wait_max: PREVIEW_WAIT_MAX,
        })
}

#[derive(Clone)]
struct Served {
    masks: Arc<InForce>,
    previews: Arc<Semaphore>,
    wait_max: Duration,
}

/// What is tried.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreviewRequest {
    /// A text, or
    pub text: Option<String>,
    /// lines.
    pub lines: Option<Vec<String>>,
    /// Types that are tried as they stand here, beside those in force or instead of those of the same name.
    pub types: Vec<TypeSettings>,
    pub character: Option<char>,
}

fn invalid(message: impl Into<String>) -> Response {
    let body = json!({"code": "invalid", "message": message.into()});
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

fn tenant(headers: &HeaderMap) -> Result<TenantId, String> {
    let value = headers.get(TENANT_KEY).map(|v| v.to_str());
    let value = value
        .transpose()
        .map_err(|_| "the tenant is not plain ASCII".to_owned())?;
    tenant_of_header(value).map_err(|e| e.to_string())
}

async fn in_force(State(Served { masks, .. }): State<Served>) -> Json<Value> {
    let masking = masks.current();
    let counts = masks.counts().by_type();
    let types = masking.all().types().map(|t| {
        let masked = counts.iter().find(|(n, _)| *n == t.name).map_or(0, |(_, n)| *n);
        let mut shown = type_json(&t);
        shown["masked"] = masked.into();
        shown
    });
    let settings = masking.settings();
    Json(json!({
        "on": settings.on,
        "character": settings.character,
        "types": types.collect::<Vec<_>>(),
        "exempt": settings.exempt,
    }))
}

/// A type as it is told.
pub fn type_json(t: &TypeInForce) -> Value {
    json!({
        "name": t.name,
        "on": t.on,
        "shipped": t.shipped.is_some(),
        "finds": t.shipped.map(|k| k.finds()),
        "keeps": t.shipped.filter(|_| t.keep_first.is_none() && t.keep_last.is_none()).map(|k| k.keeps()),
        "pattern": t.pattern,
        "character": t.character,
        "keep_first": t.keep_first,
        "keep_last": t.keep_last,
    })
}

async fn preview(
    State(served): State<Served>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(why) if why.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("the request takes more than {PREVIEW_BYTES_MAX} bytes; send fewer lines");
            let body = json!({"code": "too_large", "message": message});
            return (StatusCode::PAYLOAD_TOO_LARGE, Json(body)).into_response();
        }
        Err(why) => return invalid(why.body_text()),
    };
    let tenant = match tenant(&headers) {
        Ok(tenant) => tenant,
        Err(why) => return invalid(why),
    };
    let request: PreviewRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(e) => {
            return invalid(format!(
                "the request cannot be read: {e}; send {{\"text\": …}} or {{\"lines\": […]}}"
            ));
        }
    };
    let waited = tokio::time::timeout(served.wait_max, served.previews.acquire_owned()).await;
    let Ok(Ok(permit)) = waited else {
        return busy();
    };
    let masking = served.masks.current();
    let made = tokio::task::spawn_blocking(move || {
        // Held to the end: who asked may be gone by then, and the work goes on.
        let _permit = permit;
        answer(&masking, &tenant, request)
    });
    match made.await {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(why)) => invalid(why),
        Err(error) => {
            tracing::error!(%error, "a preview of masking ended unfinished");
            let body =
                json!({"code": "internal", "message": "the preview ended unfinished; the server's log says why"});
            (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
        }
    }
}

fn busy() -> Response {
    let message = format!("{PREVIEWS_MAX} preview is under way and takes long; ask again when it is done");
    let body = json!({"code": "busy", "message": message});
    (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "5")], Json(body)).into_response()
}

/// What a request of a tenant is answered, whether by a server or by the command line alone: what would be stored for it.
pub fn answer(masking: &Masking, tenant: &TenantId, request: PreviewRequest) -> Result<Value, String> {
    let (lines, is_text) = match (request.text, request.lines) {
        (Some(text), None) => (text.split('\n').map(str::to_owned).collect::<Vec<_>>(), true),
        (None, Some(lines)) => (lines, false),
        _ => return Err("say what is to be masked: text, or lines, and not both".to_owned()),
    };
    if lines.len() > PREVIEW_LINES_MAX {
        return Err(format!(
            "{} lines, more than {PREVIEW_LINES_MAX}; send some of them",
            lines.len()
        ));
    }
    let bytes: usize = lines.iter().map(String::len).sum();
    if request.types.iter().any(|t| t.pattern.is_some()) && bytes > TRIED_BYTES_MAX {
        return Err(format!(
            "{bytes} bytes of lines, more than the {TRIED_BYTES_MAX} that patterns are tried on; send some of the lines"
        ));
    }
    let tried;
    let masking = if request.types.is_empty() && request.character.is_none() {
        masking
    } else {
        let settings = with(masking.settings(), request.types, request.character);
        tried = Masking::new(settings, &Counts::default()).map_err(|e| e.to_string())?;
        &tried
    };
    let masker = masking.of(tenant);
    let mut left = MATCHES_MAX;
    let mut matches = 0;
    let mut shown = Vec::with_capacity(lines.len());
    let mut texts = Vec::with_capacity(lines.len());
    for line in &lines {
        let Masked { text, found } = match masker {
            Some(masker) => masker.preview(line.as_bytes()),
            None => Masked {
                text: line.clone().into_bytes(),
                found: vec![],
            },
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        matches += found.len();
        let listed = &found[..found.len().min(left)];
        left -= listed.len();
        shown.push(json!({"masked": text, "matches": places(line, listed, |f| masker.map_or("", |m| m.name(f)))}));
        texts.push(text);
    }
    let mut answer = json!({
        "lines": shown,
        "matches": matches,
        "not_listed": matches - (MATCHES_MAX - left),
        "tenant": tenant,
        "on": masking.settings().on,
        "applies": masker.is_some(),
        "exempt": exempt(masking, tenant),
    });
    if is_text {
        answer["text"] = texts.join("\n").into();
    }
    Ok(answer)
}

/// The types that are on, and not for this tenant.
fn exempt(masking: &Masking, tenant: &TenantId) -> Vec<String> {
    let Some(exemption) = masking.settings().exempt.iter().find(|e| e.tenant == tenant.as_str()) else {
        return vec![];
    };
    let is_exempt = |name: &String| exemption.types.is_empty() || exemption.types.contains(name);
    let on = masking.all().types().filter(|t| t.on).map(|t| t.name);
    on.filter(is_exempt).collect()
}

fn with(settings: &Settings, types: Vec<TypeSettings>, character: Option<char>) -> Settings {
    let mut settings = Settings {
        character: character.unwrap_or(settings.character),
        ..settings.clone()
    };
    settings.types.retain(|t| types.iter().all(|new| new.name != t.name));
    settings.types.extend(types);
    settings
}

/// Matches with their places, in characters and in bytes of the line as it was sent.
fn places<'a>(line: &str, found: &[Found], name: impl Fn(&Found) -> &'a str) -> Vec<Value> {
    // Matches come in the order of their beginnings, and none lies within another: so their ends are in order as well.
    // They may overlap, so that beginnings and ends are walked to apart.
    let (mut starts, mut ends) = (Chars::of(line), Chars::of(line));
    let place = |f: &Found| {
        let mut place = json!({
            "type": name(f), "start": starts.before(f.start), "end": ends.before(f.end), "start_byte": f.start, "end_byte": f.end,
        });
        if f.unsearched {
            place["unsearched"] = true.into();
        }
        place
    };
    found.iter().map(place).collect()
}

/// Counts characters up to places that only grow.
struct Chars<'a> {
    line: &'a [u8],
    at: usize,
    chars: usize,
}

impl<'a> Chars<'a> {
    const fn of(line: &'a str) -> Self {
        Self {
            line: line.as_bytes(),
            at: 0,
            chars: 0,
        }
    }

    fn before(&mut self, byte: usize) -> usize {
        let passed = self.line.get(self.at..byte).unwrap_or_default();
        self.chars += passed.iter().filter(|b| **b & 0xc0 != 0x80).count();
        self.at = self.at.max(byte);
        self.chars
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_masking::Exemption;
    use tower::ServiceExt;

    async fn ask(masks: &Arc<InForce>, method: &str, path: &str, body: String) -> (u16, Value) {
        let request = hyper::Request::builder().method(method).uri(path);
        let request = request.body(axum::body::Body::from(body)).unwrap();
        let answer = router(masks.clone()).oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    const PREVIEW: &str = "/api/hindcast/v1/masking/preview";

    #[tokio::test]
    async fn a_preview_shows_the_text_masked_and_where_what_was() {
        let masks = Arc::<InForce>::default();
        let body = json!({"text": "홍길동 010-1234-5678\n그리고 서울시 성동구 성수이로"}).to_string();
        let (status, got) = ask(&masks, "POST", PREVIEW, body).await;
        assert_eq!(status, 200);
        assert_eq!(got["text"], "홍길동 010-****-5678\n그리고 서울시 성동구 ****");
        assert_eq!((&got["applies"], &got["matches"]), (&json!(true), &json!(2)));
        let at = json!({"type": "phone", "start": 4, "end": 17, "start_byte": 10, "end_byte": 23});
        assert_eq!(got["lines"][0]["matches"], json!([at]));
        assert_eq!(masks.counts().bytes(), 0, "a preview is not counted");
    }

    #[tokio::test]
    async fn types_that_are_not_in_force_can_be_tried() {
        let masks = Arc::<InForce>::default();
        let types =
            json!([{"name": "employee", "pattern": "EMP-\\d{6}", "keep_first": 3}, {"name": "email", "on": false}]);
        let body = json!({"lines": ["EMP-123456 hong@naver.com"], "types": types, "character": "#"}).to_string();
        let (status, got) = ask(&masks, "POST", PREVIEW, body).await;
        assert_eq!(
            (status, &got["lines"][0]["masked"]),
            (200, &json!("EMP-###### hong@naver.com"))
        );
        let (_, now) = ask(&masks, "GET", "/api/hindcast/v1/masking", String::new()).await;
        let names: Vec<_> = now["types"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["rrn", "phone", "email", "card", "address", "passport"]);
        assert_eq!(
            (&now["on"], &now["types"][0]["keeps"]),
            (&json!(true), &json!("the birthday"))
        );
    }

    fn exempting(on: bool, tenant: &str, types: &[&str]) -> Settings {
        Settings {
            on,
            exempt: vec![Exemption {
                tenant: tenant.to_owned(),
                types: types.iter().map(|t| (*t).to_owned()).collect(),
            }],
            ..Settings::default()
        }
    }

    /// Masked line, whether anything applies, and what the tenant is exempt from.
    fn previewed(settings: Settings, tenant: &str, types: Value) -> (String, bool, Value) {
        let masking = Masking::new(settings, &Counts::default()).unwrap();
        let request = json!({"lines": ["010-1234-5678 hong@naver.com EMP-1"], "types": types});
        let request = serde_json::from_value(request).unwrap();
        let got = answer(&masking, &TenantId::new(tenant).unwrap(), request).unwrap();
        let masked = got["lines"][0]["masked"].as_str().unwrap().to_owned();
        (masked, got["applies"] == true, got["exempt"].clone())
    }

    #[test]
    fn a_preview_for_an_exempt_tenant_shows_what_is_stored_for_it() {
        let some = || exempting(true, "lab", &["phone"]);
        let raw = "010-1234-5678 hong@naver.com EMP-1";
        assert_eq!(
            previewed(some(), "lab", json!([])),
            ("010-1234-5678 ho**@naver.com EMP-1".to_owned(), true, json!(["phone"]))
        );
        assert_eq!(
            previewed(some(), "shop", json!([])).0,
            "010-****-5678 ho**@naver.com EMP-1"
        );
        // A type that is tried does not end the exemption from others.
        let own = json!([{"name": "employee", "pattern": r"EMP-\d"}]);
        assert_eq!(
            previewed(some(), "lab", own.clone()).0,
            "010-1234-5678 ho**@naver.com *****"
        );
        let (masked, applies, exempt) = previewed(exempting(true, "lab", &[]), "lab", own);
        assert_eq!((masked.as_str(), applies), (raw, false));
        assert_eq!(exempt.as_array().unwrap().len(), 7);
    }

    #[test]
    fn a_preview_while_masking_is_off_shows_lines_as_they_come() {
        let (masked, applies, _) = previewed(exempting(false, "lab", &["phone"]), "shop", json!([]));
        assert_eq!(
            (masked.as_str(), applies),
            ("010-1234-5678 hong@naver.com EMP-1", false)
        );
    }

    #[test]
    fn a_preview_with_a_pattern_takes_less_text() {
        let masking = Masking::new(Settings::default(), &Counts::default()).unwrap();
        let ask = |bytes: usize| {
            let types = json!([{"name": "slow", "pattern": ".*[^A-Z]|[A-Z]"}]);
            let request = json!({"text": "A".repeat(bytes), "types": types});
            answer(&masking, &TenantId::default(), serde_json::from_value(request).unwrap())
        };
        let why = ask(TRIED_BYTES_MAX + 1).unwrap_err();
        assert!(why.contains("65537 bytes of lines, more than the 65536"), "{why}");
        let got = ask(TRIED_BYTES_MAX).unwrap();
        let text = got["text"].as_str().unwrap();
        assert!(text.bytes().all(|b| b == b'*'), "what is not searched is hidden");
        let matches = got["lines"][0]["matches"].as_array().unwrap();
        assert_eq!(
            (&matches[0]["unsearched"], &matches[matches.len() - 1]["unsearched"]),
            (&Value::Null, &json!(true))
        );
    }

    #[test]
    fn places_of_matches_that_overlap_are_in_characters() {
        let at = |start, end| Found {
            of: 0,
            start,
            end,
            from: start,
            to: end,
            unsearched: false,
        };
        let line = "가나다라마";
        let got = places(line, &[at(0, 6), at(3, 9), at(3, 12), at(12, 15)], |_| "x");
        let got: Vec<_> = got.iter().map(|p| (p["start"].clone(), p["end"].clone())).collect();
        let want = [(0, 2), (1, 3), (1, 4), (4, 5)].map(|(s, e)| (json!(s), json!(e)));
        assert_eq!(got, want);
    }

    #[tokio::test]
    async fn a_second_preview_waits_and_is_refused_when_the_first_takes_too_long() {
        let served = Served {
            masks: Arc::default(),
            previews: Arc::new(Semaphore::new(PREVIEWS_MAX)),
            wait_max: Duration::from_millis(20),
        };
        let first = served
            .previews
            .clone()
            .try_acquire_many_owned(PREVIEWS_MAX as u32)
            .unwrap();
        let body = || Bytes::from_static(br#"{"text": "x"}"#);
        let refused = preview(State(served.clone()), HeaderMap::new(), Ok(body())).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        drop(first);
        let answered = preview(State(served), HeaderMap::new(), Ok(body())).await;
        assert_eq!(answered.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn bad_and_large_requests_are_refused_with_words() {
        let masks = Arc::<InForce>::default();
        let lines = vec!["x"; PREVIEW_LINES_MAX + 1];
        for (body, status, words) in [
            (json!({}), 400, "text, or lines"),
            (json!({"text": "x", "lines": []}), 400, "not both"),
            (json!({"txt": "x"}), 400, "unknown field `txt`"),
            (json!({"lines": lines}), 400, "1001 lines, more than 1000"),
            (
                json!({"text": "x", "types": [{"name": "a", "pattern": "("}]}),
                400,
                "cannot be used",
            ),
            (json!({"text": "x".repeat(PREVIEW_BYTES_MAX)}), 413, ""),
        ] {
            let (got, answer) = ask(&masks, "POST", PREVIEW, body.to_string()).await;
            let message = answer["message"].as_str().unwrap_or_default();
            assert!(got == status && message.contains(words), "{got} {answer}");
        }
        let many = "010-1234-5678 ".repeat(MATCHES_MAX + 5);
        let (status, got) = ask(&masks, "POST", PREVIEW, json!({"text": many}).to_string()).await;
        assert_eq!(
            (status, &got["matches"], &got["not_listed"]),
            (200, &json!(MATCHES_MAX + 5), &json!(5))
        );
    }
}
