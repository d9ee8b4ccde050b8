//! The pages for people, wherever no other route is.

use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse as _, Response};

use crate::edge;

/// An address that is no page and no file of the pages is answered as on every listener.
pub(crate) async fn get_page(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let page =
        (method == Method::GET || method == Method::HEAD).then(|| fettle_web::answer(uri.path(), &headers)).flatten();
    match page {
        Some(response) => response,
        None => edge::no_such_route().await.into_response(),
    }
}
