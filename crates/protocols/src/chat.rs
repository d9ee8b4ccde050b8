//! OpenAI's chat completions, as OpenAI's own servers, vLLM, SGLang and llama.cpp speak it.

mod answer;
mod request;

pub(crate) use answer::{Reader, Writer, whole};
pub(crate) use request::{
    EFFORTS, image_of, of_effort, of_three, read, read_function, read_sampling, read_stop, texts, to_effort, url_of,
    write, write_function, write_instructions, write_sampling,
};
