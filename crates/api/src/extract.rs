//! Request parts, parsed at the door with problems that name the field.

use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::problem::{Code, Problem};

/// A JSON body. Unreadable is 400, a field that does not fit is 422 with its pointer.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !is_json(kind) {
            return Err(Problem::new(Code::UnsupportedMediaType, "Send `Content-Type: application/json`."));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(unread)?;
        parse(&bytes).map(Self)
    }
}

/// Reads `bytes` as JSON into `T`.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let pointer = pointer(error.path());
        let error = error.into_inner();
        if error.is_data() {
            Problem::refused(pointer, error.to_string())
        } else {
            Problem::new(Code::BadRequest, format!("The body is not JSON: {error}."))
        }
    })?;
    json.end().map_err(|error| Problem::new(Code::BadRequest, format!("The body is not JSON: {error}.")))?;
    Ok(value)
}

/// Reads a JSON value into `T`; a field that does not fit is 422 with its pointer.
pub(crate) fn convert<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let pointer = pointer(error.path());
        Problem::refused(pointer, error.into_inner().to_string())
    })
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter()
        .map(|segment| match segment {
            Segment::Seq { index } => format!("/{index}"),
            Segment::Map { key } => format!("/{}", key.replace('~', "~0").replace('/', "~1")),
            Segment::Enum { variant } => format!("/{variant}"),
            Segment::Unknown => "/".to_owned(),
        })
        .collect()
}

pub(crate) fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// A body that could not be read to its end.
pub(crate) fn unread(rejection: BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        Problem::new(Code::TooLarge, "The body is larger than this address takes.")
    } else {
        Problem::new(Code::BadRequest, "The body ended early.")
    }
}

/// Query parameters; unknown ones are refused by the type.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(value) = Query::from_request_parts(parts, state).await.map_err(|rejection: QueryRejection| {
            Problem::new(Code::BadRequest, format!("{}.", rejection.body_text()))
        })?;
        Ok(Self(value))
    }
}

/// An id in the path. Text that is no id names nothing, so it is 404.
pub(crate) struct Named<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(value) = Path::from_request_parts(parts, state).await.map_err(|rejection: PathRejection| {
            Problem::new(Code::NotFound, format!("The address names nothing: {}.", rejection.body_text()))
        })?;
        Ok(Self(value))
    }
}
