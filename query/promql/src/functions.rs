//! The functions that exist, and the types of their arguments.

use crate::ast::ValueType::{self, Matrix, Scalar, String, Vector};

#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: &'static str,
    pub args: &'static [ValueType],
    pub optional: Optional,
    pub returns: ValueType,
}

/// How many arguments may be left out or repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optional {
    None,
    /// The last one may be left out.
    Last,
    /// The last one may be left out or repeated.
    Repeated,
}

impl Function {
    pub const fn least_args(&self) -> usize {
        match self.optional {
            Optional::None => self.args.len(),
            Optional::Last | Optional::Repeated => self.args.len() - 1,
        }
    }

    pub const fn most_args(&self) -> usize {
        match self.optional {
            Optional::None | Optional::Last => self.args.len(),
            Optional::Repeated => usize::MAX,
        }
    }
}

const fn function(name: &'static str, args: &'static [ValueType], returns: ValueType) -> Function {
    Function {
        name,
        args,
        optional: Optional::None,
        returns,
    }
}

const fn optional(name: &'static str, args: &'static [ValueType], optional: Optional, returns: ValueType) -> Function {
    Function {
        name,
        args,
        optional,
        returns,
    }
}

/// Sorted by name.
pub static FUNCTIONS: &[Function] = &[
    function("abs", &[Vector], Vector),
    function("absent", &[Vector], Vector),
    function("absent_over_time", &[Matrix], Vector),
    function("acos", &[Vector], Vector),
    function("acosh", &[Vector], Vector),
    function("asin", &[Vector], Vector),
    function("asinh", &[Vector], Vector),
    function("atan", &[Vector], Vector),
    function("atanh", &[Vector], Vector),
    function("avg_over_time", &[Matrix], Vector),
    function("ceil", &[Vector], Vector),
    function("changes", &[Matrix], Vector),
    function("clamp", &[Vector, Scalar, Scalar], Vector),
    function("clamp_max", &[Vector, Scalar], Vector),
    function("clamp_min", &[Vector, Scalar], Vector),
    function("cos", &[Vector], Vector),
    function("cosh", &[Vector], Vector),
    function("count_over_time", &[Matrix], Vector),
    optional("day_of_month", &[Vector], Optional::Last, Vector),
    optional("day_of_week", &[Vector], Optional::Last, Vector),
    optional("day_of_year", &[Vector], Optional::Last, Vector),
    optional("days_in_month", &[Vector], Optional::Last, Vector),
    function("deg", &[Vector], Vector),
    function("delta", &[Matrix], Vector),
    function("deriv", &[Matrix], Vector),
    function("double_exponential_smoothing", &[Matrix, Scalar, Scalar], Vector),
    function("exp", &[Vector], Vector),
    function("first_over_time", &[Matrix], Vector),
    function("floor", &[Vector], Vector),
    function("histogram_avg", &[Vector], Vector),
    function("histogram_count", &[Vector], Vector),
    function("histogram_fraction", &[Scalar, Scalar, Vector], Vector),
    function("histogram_quantile", &[Scalar, Vector], Vector),
    optional(
        "histogram_quantiles",
        &[Vector, String, Scalar, Scalar],
        Optional::Repeated,
        Vector,
    ),
    function("histogram_stddev", &[Vector], Vector),
    function("histogram_stdvar", &[Vector], Vector),
    function("histogram_sum", &[Vector], Vector),
    optional("hour", &[Vector], Optional::Last, Vector),
    function("idelta", &[Matrix], Vector),
    function("increase", &[Matrix], Vector),
    function("irate", &[Matrix], Vector),
    optional(
        "label_join",
        &[Vector, String, String, String],
        Optional::Repeated,
        Vector,
    ),
    function("label_replace", &[Vector, String, String, String, String], Vector),
    function("last_over_time", &[Matrix], Vector),
    function("ln", &[Vector], Vector),
    function("log10", &[Vector], Vector),
    function("log2", &[Vector], Vector),
    function("mad_over_time", &[Matrix], Vector),
    function("max_over_time", &[Matrix], Vector),
    function("min_over_time", &[Matrix], Vector),
    optional("minute", &[Vector], Optional::Last, Vector),
    optional("month", &[Vector], Optional::Last, Vector),
    function("pi", &[], Scalar),
    function("predict_linear", &[Matrix, Scalar], Vector),
    function("present_over_time", &[Matrix], Vector),
    function("quantile_over_time", &[Scalar, Matrix], Vector),
    function("rad", &[Vector], Vector),
    function("rate", &[Matrix], Vector),
    function("resets", &[Matrix], Vector),
    optional("round", &[Vector, Scalar], Optional::Last, Vector),
    function("scalar", &[Vector], Scalar),
    function("sgn", &[Vector], Vector),
    function("sin", &[Vector], Vector),
    function("sinh", &[Vector], Vector),
    function("sort", &[Vector], Vector),
    optional("sort_by_label", &[Vector, String], Optional::Repeated, Vector),
    optional("sort_by_label_desc", &[Vector, String], Optional::Repeated, Vector),
    function("sort_desc", &[Vector], Vector),
    function("sqrt", &[Vector], Vector),
    function("stddev_over_time", &[Matrix], Vector),
    function("stdvar_over_time", &[Matrix], Vector),
    function("sum_over_time", &[Matrix], Vector),
    function("tan", &[Vector], Vector),
    function("tanh", &[Vector], Vector),
    function("time", &[], Scalar),
    function("timestamp", &[Vector], Vector),
    function("ts_of_first_over_time", &[Matrix], Vector),
    function("ts_of_last_over_time", &[Matrix], Vector),
    function("ts_of_max_over_time", &[Matrix], Vector),
    function("ts_of_min_over_time", &[Matrix], Vector),
    function("vector", &[Scalar], Vector),
    optional("year", &[Vector], Optional::Last, Vector),
];

/// The function of that exact name.
pub fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS
        .binary_search_by(|f| f.name.cmp(name))
        .ok()
        .map(|i| &FUNCTIONS[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_so_that_search_finds_everything() {
        assert!(FUNCTIONS.is_sorted_by(|a, b| a.name < b.name));
        assert!(FUNCTIONS.iter().all(|f| find(f.name) == Some(f)));
        assert_eq!(find("rat"), None);
    }
}
