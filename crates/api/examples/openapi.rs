//! Prints the API's document as it is committed; `cargo xtask codegen` runs it.

#![expect(clippy::print_stdout, reason = "the document is the result")]

fn main() {
    print!("{}", fettle_api::openapi_json());
}
