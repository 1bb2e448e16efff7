//! `/api/hindcast/v1/masking`: the types in force, and a preview of what they, or others, would do to a text.
//!
//! A preview stores and logs nothing. Its work is bounded by [`PREVIEW_BYTES_MAX`] and [`PREVIEW_LINES_MAX`], its answer by
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

/// Bytes of a preview's request.
pub const PREVIEW_BYTES_MAX: usize = 1024 * 1024;
/// Lines of it.
pub const PREVIEW_LINES_MAX: usize = 1000;
/// Matches that an answer lists; further ones are counted.
pub const MATCHES_MAX: usize = 10_000;

pub fn router(masks: Arc<InForce>) -> axum::Router {
    axum::Router::new()
        .route("/api/hindcast/v1/masking", get(in_force))
        .route("/api/hindcast/v1/masking/preview", post(preview))
        .layer(DefaultBodyLimit::max(PREVIEW_BYTES_MAX))
        .with_state(masks)
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

async fn in_force(State(masks): State<Arc<InForce>>) -> Json<Value> {
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

async fn preview(State(masks): State<Arc<InForce>>, headers: HeaderMap, body: Bytes) -> Response {
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
    let masking = masks.current();
    match answer(&masking, request) {
        Ok(mut answer) => {
            answer["applies"] = masking.of(&tenant).is_some().into();
            Json(answer).into_response()
        }
        Err(why) => invalid(why),
    }
}

/// What a request is answered, whether by a server or by the command line alone.
pub fn answer(masking: &Masking, request: PreviewRequest) -> Result<Value, String> {
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
    let tried;
    let masker = if request.types.is_empty() && request.character.is_none() {
        masking.all()
    } else {
        let settings = with(masking.settings(), request.types, request.character);
        tried = Masking::new(settings, &Counts::default()).map_err(|e| e.to_string())?;
        tried.all()
    };
    let mut left = MATCHES_MAX;
    let mut matches = 0;
    let mut shown = Vec::with_capacity(lines.len());
    let mut texts = Vec::with_capacity(lines.len());
    for line in &lines {
        let Masked { text, found } = masker.preview(line.as_bytes());
        let text = String::from_utf8_lossy(&text).into_owned();
        matches += found.len();
        let listed = &found[..found.len().min(left)];
        left -= listed.len();
        shown.push(json!({"masked": text, "matches": places(line, listed, |f| masker.name(f))}));
        texts.push(text);
    }
    let mut answer = json!({"lines": shown, "matches": matches, "not_listed": matches - (MATCHES_MAX - left)});
    if is_text {
        answer["text"] = texts.join("\n").into();
    }
    Ok(answer)
}

fn with(settings: &Settings, types: Vec<TypeSettings>, character: Option<char>) -> Settings {
    let mut settings = Settings {
        character: character.unwrap_or(settings.character),
        exempt: vec![],
        ..settings.clone()
    };
    settings.types.retain(|t| types.iter().all(|new| new.name != t.name));
    settings.types.extend(types);
    settings
}

/// Matches with their places, in characters and in bytes of the line as it was sent.
fn places<'a>(line: &str, found: &[Found], name: impl Fn(&Found) -> &'a str) -> Vec<Value> {
    let (mut at, mut chars) = (0, 0);
    let mut to_chars = |byte: usize| {
        // Matches come in the order of their beginnings; only an overlap steps back.
        if byte < at {
            (at, chars) = (0, 0);
        }
        chars += line.as_bytes()[at..byte].iter().filter(|b| **b & 0xc0 != 0x80).count();
        at = byte;
        chars
    };
    let place = |f: &Found| {
        let start = to_chars(f.start);
        json!({
            "type": name(f), "start": start, "end": to_chars(f.end), "start_byte": f.start, "end_byte": f.end,
        })
    };
    found.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
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
