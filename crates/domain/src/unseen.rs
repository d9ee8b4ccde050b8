//! Characters that nobody sees. One definition, for what is shown, what is compared and what is searched for secrets.

/// Bidirectional, zero-width and tag characters: they change how text reads, and show nothing themselves.
pub(crate) fn is_hidden(c: char) -> bool {
    matches!(c,
        '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// The hidden ones, control characters (line ends and tabs too), fillers and variation selectors: what may be dropped
/// when two texts are compared, and what a file system may drop when it compares names. Text that is shown keeps the
/// selectors, which belong to emoji.
pub(crate) fn is_ignorable(c: char) -> bool {
    c.is_control()
        || is_hidden(c)
        || matches!(c,
            '\u{034f}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}')
}
