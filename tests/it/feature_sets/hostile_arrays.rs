//! `.npz` files whose arrays lie.

use super::{
    Hostile,
    archives::{f32_bytes, good_features, good_labels, i64_bytes, npy, npy_with_header, npz},
    check, hostile, variant,
};

/// Every file of this module that must be refused whatever the limit.
pub(super) fn cases() -> Vec<Hostile> {
    [
        cases_of_headers_that_are_no_header_are_refused(),
        cases_of_element_types_that_are_not_numbers_of_the_right_sort_are_refused(),
        cases_of_shapes_that_do_not_fit_are_refused(),
        cases_of_values_that_cannot_be_are_named_by_their_row(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn cases_of_headers_that_are_no_header_are_refused() -> Vec<Hostile> {
    let header = |text: &str| npz(&npy_with_header([1, 0], text, &[0; 16]), &good_labels());
    let keys = |descr: &str, order: &str, shape: &str| {
        header(&format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"))
    };
    let mut cases = vec![
        hostile("empty member", npz(b"", &good_labels()), variant!(NpyHeader), &["`features`", "ends at byte 0"]),
        hostile("magic alone", npz(b"\x93NUMPY", &good_labels()), variant!(NpyHeader), &["ends at byte 6"]),
        hostile("no magic", npz(&[b'x'; 200], &good_labels()), variant!(NpyHeader), &["no magic string"]),
        hostile(
            "version 4",
            npz(&npy_with_header([4, 0], "{}", &[]), &good_labels()),
            variant!(NpyHeader),
            &["version"],
        ),
        hostile(
            "version 1.1",
            npz(&npy_with_header([1, 1], "{}", &[]), &good_labels()),
            variant!(NpyHeader),
            &["version"],
        ),
        hostile(
            "version 0",
            npz(&npy_with_header([0, 0], "{}", &[]), &good_labels()),
            variant!(NpyHeader),
            &["version"],
        ),
        hostile(
            "a header of 4 GiB",
            npz(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", &good_labels()),
            variant!(NpyHeader),
            &["65536 bytes", "byte 8"],
        ),
        hostile(
            "a header longer than the member",
            npz(b"\x93NUMPY\x01\x00\xff\xff{", &good_labels()),
            variant!(NpyHeader),
            &["ends at byte 11"],
        ),
        hostile("labels without a header", npz(&good_features(), b"1,2"), variant!(NpyHeader), &["`labels`"]),
    ];
    let texts = [
        ("", "no dictionary"),
        ("\n", "no dictionary"),
        ("[]", "no dictionary"),
        ("{}", "a key is missing"),
        ("{", "no string"),
        ("{'descr'", "no colon"),
        ("{'descr': '<f4'", "no comma"),
        ("{'descr': '<f4', 'shape': (2, 2)}", "a key is missing"),
        ("{'descr': '<f4', 'fortran_order': False}", "a key is missing"),
        ("{descr: '<f4'}", "no string"),
        ("{'descr: '<f4'}", "no colon"),
        ("{'descr", "no end of a string"),
        ("{'de\\x73cr': '<f4'}", "an escaped"),
        ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)}", "second time"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), 'x': 1}", "an unknown key"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)} or exit()", "something after"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)},", "something after"),
        ("{,}", "no string"),
        ("{'descr': '<f4',, 'fortran_order': False, 'shape': (2, 2)}", "no string"),
        ("{'descr': '<f4' 'fortran_order': False, 'shape': (2, 2)}", "no comma"),
    ];
    for (text, problem) in texts {
        cases.push(hostile(text, header(text), variant!(NpyHeader), &["`features`", problem]));
    }
    let values = [
        ("__import__('os')", "False", "(2, 2)", "no string"),
        ("b'<f4'", "False", "(2, 2)", "no string"),
        ("None", "False", "(2, 2)", "no string"),
        ("[('a', '<f4')]", "False", "(2, 2)", "structured type"),
        ("'<f4'", "0", "(2, 2)", "neither True nor False"),
        ("'<f4'", "not True", "(2, 2)", "neither True nor False"),
        ("'<f4'", "false", "(2, 2)", "neither True nor False"),
        ("'<f4'", "Falsehood", "(2, 2)", "no comma"),
        ("'<f4'", "False", "[2, 2]", "no tuple"),
        ("'<f4'", "False", "(2)", "no comma"),
        ("'<f4'", "False", "(2, 2", "no whole number"),
        ("'<f4'", "False", "(-2, 2)", "no whole number"),
        ("'<f4'", "False", "(2.0, 2)", "no end of a tuple"),
        ("'<f4'", "False", "(1+1, 2)", "no end of a tuple"),
        ("'<f4'", "False", "(2, 2**9)", "no end of a tuple"),
        ("'<f4'", "False", "(True, 2)", "no whole number"),
        ("'<f4'", "False", "((2, 2), 2)", "no whole number"),
        ("'<f4'", "False", "(, 2)", "no whole number"),
        ("'<f4'", "False", "(2,, 2)", "no whole number"),
        ("'<f4'", "False", "(18446744073709551616, 1)", "beyond 64 bits"),
    ];
    for (descr, order, shape, problem) in values {
        let what = format!("{descr} {order} {shape}");
        cases.push(hostile(what, keys(descr, order, shape), variant!(NpyHeader), &["`features`", problem]));
    }
    let many = format!("({})", "1, ".repeat(33));
    cases.push(hostile("33 dimensions", keys("'<f4'", "False", &many), variant!(NpyHeader), &["a dimension too many"]));
    let nested = "(".repeat(60_000);
    cases.push(hostile("nested", keys("'<f4'", "False", &nested), variant!(NpyHeader), &["no whole number"]));
    cases
}

#[test]
fn headers_that_are_no_header_are_refused() {
    check(cases_of_headers_that_are_no_header_are_refused());
}

fn cases_of_element_types_that_are_not_numbers_of_the_right_sort_are_refused() -> Vec<Hostile> {
    let mut cases = Vec::new();
    for descr in
        ["|O", "|b1", "<i4", "<i8", "|u1", "<c8", "<U4", "|S4", "|V4", "<f16", "=f4", "f4", "|f4", "<f1", "", "<M8[ns]"]
    {
        let bytes = npz(&npy(descr, "(2, 2)", &[0; 16]), &good_labels());
        cases.push(hostile(descr, bytes, variant!(ElementType), &["`features`", "float16, float32 or float64"]));
    }
    for descr in ["|O", "|b1", "<f4", "<f8", "<i3", "=i8", "|i8", "<m8", "<U1"] {
        let bytes = npz(&good_features(), &npy(descr, "(2,)", &[0; 16]));
        cases.push(hostile(descr, bytes, variant!(ElementType), &["`labels`", "integers"]));
    }
    let long = npy(&"<f4".repeat(1000), "(2, 2)", &[0; 16]);
    cases.push(hostile("a long type", npz(&long, &good_labels()), variant!(ElementType), &["<f4<f4"]));
    cases
}

#[test]
fn element_types_that_are_not_numbers_of_the_right_sort_are_refused() {
    check(cases_of_element_types_that_are_not_numbers_of_the_right_sort_are_refused());
}

fn cases_of_shapes_that_do_not_fit_are_refused() -> Vec<Hostile> {
    let features = |shape: &str| npz(&npy("<f4", shape, &[0; 16]), &good_labels());
    let labels = |shape: &str| npz(&good_features(), &npy("<i8", shape, &[0; 16]));
    let of = |shape: &str, n: usize| npz(&npy("<f4", shape, &vec![0; n]), &npy("<i8", "(0,)", &[]));
    let rows_without_columns = npz(&npy("<f4", "(2, 0)", &[]), &good_labels());
    vec![
        hostile("scalar", features("()"), variant!(Dimensions), &["`features`", "[]", "two dimensions"]),
        hostile("one dimension", features("(4,)"), variant!(Dimensions), &["[4]", "two dimensions"]),
        hostile("three dimensions", features("(2, 2, 1)"), variant!(Dimensions), &["[2, 2, 1]"]),
        hostile("scalar label", labels("()"), variant!(Dimensions), &["`labels`", "one dimension"]),
        hostile("a column of labels", labels("(2, 1)"), variant!(Dimensions), &["`labels`", "[2, 1]"]),
        hostile("fewer rows", features("(1, 4)"), variant!(LengthMismatch), &["1 rows", "2 labels"]),
        hostile("more rows", features("(4, 1)"), variant!(LengthMismatch), &["4 rows", "2 labels"]),
        hostile("no rows", of("(0, 2)", 0), variant!(Empty), &["[0, 2]"]),
        hostile("no columns", rows_without_columns, variant!(Empty), &["[2, 0]"]),
        hostile("no rows of many columns", of("(0, 18446744073709551615)", 0), variant!(Empty), &["[0, "]),
        hostile("one more column", features("(2, 3)"), variant!(Short), &["`features`", "24 bytes", "has 16"]),
        hostile("one label more", labels("(3,)"), variant!(Short), &["`labels`", "24 bytes", "has 16"]),
        hostile("one column less", features("(2, 1)"), variant!(TrailingBytes), &["`features`"]),
        hostile("one label less", labels("(1,)"), variant!(TrailingBytes), &["`labels`"]),
        hostile("many columns", features("(2, 1099511627776)"), variant!(TooLarge), &["`features`", "1048576"]),
        hostile("many labels", labels("(1099511627776,)"), variant!(TooLarge), &["`labels`"]),
        hostile("a product beyond 64 bits", features("(2, 18446744073709551615)"), variant!(TooLarge), &["`features`"]),
        hostile("labels beyond 64 bits", labels("(18446744073709551615,)"), variant!(TooLarge), &["`labels`"]),
    ]
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    check(cases_of_shapes_that_do_not_fit_are_refused());
}

fn cases_of_values_that_cannot_be_are_named_by_their_row() -> Vec<Hostile> {
    let floats = |descr: &str, data: Vec<u8>| npz(&npy(descr, "(2, 2)", &data), &good_labels());
    let doubles = |values: [f64; 4]| floats("<f8", values.iter().flat_map(|value| value.to_le_bytes()).collect());
    let labels = |values: &[i64]| npz(&good_features(), &npy("<i8", "(2,)", &i64_bytes(values)));
    let by_column = "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }";
    let by_column = npy_with_header([1, 0], by_column, &f32_bytes(&[0.0, f32::NAN, 0.0, 0.0]));
    let unsigned = npy("<u8", "(2,)", &[[0; 8], [255; 8]].concat());
    vec![
        hostile(
            "NaN",
            floats("<f4", f32_bytes(&[0.0, 0.0, f32::NAN, 0.0])),
            variant!(NotFinite),
            &["row 1", "column 0"],
        ),
        hostile(
            "inf",
            floats("<f4", f32_bytes(&[0.0, f32::INFINITY, 0.0, 0.0])),
            variant!(NotFinite),
            &["row 0", "column 1"],
        ),
        hostile("-inf", doubles([0.0, 0.0, 0.0, f64::NEG_INFINITY]), variant!(NotFinite), &["row 1", "column 1"]),
        hostile("beyond float32", doubles([1e39, 0.0, 0.0, 0.0]), variant!(NotFinite), &["row 0", "float32"]),
        hostile(
            "float16 NaN",
            floats("<f2", vec![0, 0, 0, 0, 0, 0x7e, 0, 0]),
            variant!(NotFinite),
            &["row 1", "column 0"],
        ),
        hostile(
            "NaN in a column-major array",
            npz(&by_column, &good_labels()),
            variant!(NotFinite),
            &["row 1", "column 0"],
        ),
        hostile("a class too many", labels(&[0, 3]), variant!(LabelOutOfRange), &["row 1", "is 3", "3 classes"]),
        hostile("negative", labels(&[-1, 0]), variant!(LabelOutOfRange), &["row 0", "is -1"]),
        hostile("smallest", labels(&[0, i64::MIN]), variant!(LabelOutOfRange), &["-9223372036854775808"]),
        hostile("beyond 32 bits", labels(&[1 << 32, 0]), variant!(LabelOutOfRange), &["4294967296"]),
        hostile(
            "largest",
            npz(&good_features(), &unsigned),
            variant!(LabelOutOfRange),
            &["row 1", "18446744073709551615"],
        ),
    ]
}

#[test]
fn values_that_cannot_be_are_named_by_their_row() {
    check(cases_of_values_that_cannot_be_are_named_by_their_row());
}
