//! The pages for people, wherever no other route is.

use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse as _, Response};

use crate::edge;

/// An address that is no page and no file of the pages is answered as on every listener.
pub(crate) async fn get_page(uri: Uri, headers: HeaderMap) -> Response {
    match fettle_web::answer(uri.path(), &headers) {
        Some(response) => response,
        None => edge::no_such_route().await.into_response(),
    }
}
