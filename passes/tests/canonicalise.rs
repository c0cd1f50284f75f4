//! The rules of `canonicalise`, one by one.

mod support;

use support::rules::{becomes, stays};

#[test]
fn a_slice_of_all_is_nothing() {
    becomes(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = slice %0 {axis=1, end=4, start=0} : f32[text:12,4]
        return %1 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        return %0 as "y"
        "#,
    );
}

#[test]
fn slices_of_slices_and_of_concats() {
    becomes(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = slice %0 {axis=1, end=4, start=1} : f32[text:12,3]
        %2 = concat %0, %1 {axis=1} : f32[text:12,7]
        %3 = slice %2 {axis=1, end=7, start=5} : f32[text:12,2]
        %4 = slice %2 {axis=1, end=4, start=0} : f32[text:12,4]
        return %3 as "y"
        return %4 as "z"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = slice %0 {axis=1, end=4, start=2} : f32[text:12,2]
        return %1 as "y"
        return %0 as "z"
        "#,
    );
}

#[test]
fn a_slice_across_a_seam_stays() {
    stays(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = concat %0, %0 {axis=1} : f32[text:12,8]
        %2 = slice %1 {axis=1, end=6, start=2} : f32[text:12,4]
        return %2 as "y"
        "#,
    );
}

#[test]
fn concats_of_concats_and_of_adjoining_slices() {
    becomes(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = slice %0 {axis=1, end=2, start=0} : f32[text:12,2]
        %2 = slice %0 {axis=1, end=4, start=2} : f32[text:12,2]
        %3 = concat %1, %2 {axis=1} : f32[text:12,4]
        %4 = concat %2, %1 {axis=1} : f32[text:12,4]
        %5 = concat %4, %3 {axis=1} : f32[text:12,8]
        %6 = concat %5 {axis=1} : f32[text:12,8]
        return %6 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = slice %0 {axis=1, end=2, start=0} : f32[text:12,2]
        %2 = slice %0 {axis=1, end=4, start=2} : f32[text:12,2]
        %3 = concat %2, %1, %0 {axis=1} : f32[text:12,8]
        return %3 as "y"
        "#,
    );
}

#[test]
fn parts_of_a_union_put_together_again() {
    becomes(
        "canonicalise",
        r#"
        rows text+box = 21 of text, box
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="x.box"} : f32[box:9,4]
        %2 = concat %0, %1 {axis=0} : f32[text+box:21,4]
        %3 = scale %2 {factor=3.0} : f32[text+box:21,4]
        %4 = part %3 {index=0} : f32[text:12,4]
        %5 = part %3 {index=1} : f32[box:9,4]
        %6 = concat %4, %5 {axis=0} : f32[text+box:21,4]
        %7 = part %2 {index=1} : f32[box:9,4]
        return %6 as "y"
        return %7 as "z"
        "#,
        r#"
        rows text+box = 21 of text, box
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="x.box"} : f32[box:9,4]
        %2 = concat %0, %1 {axis=0} : f32[text+box:21,4]
        %3 = scale %2 {factor=3.0} : f32[text+box:21,4]
        return %3 as "y"
        return %1 as "z"
        "#,
    );
}

#[test]
fn a_concat_of_one_space_is_another_space() {
    stays(
        "canonicalise",
        r#"
        rows just = 12 of text
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = concat %0 {axis=0} : f32[just:12,4]
        return %1 as "y"
        "#,
    );
}

#[test]
fn gathers_of_gathers_compose() {
    becomes(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="any.text.0"} : i32[box:9]
        %2 = input {name="any.box.0"} : i32[sample:3]
        %3 = gather_rows %0, %1 : f32[box:9,4]
        %4 = gather_rows %3, %2 : f32[sample:3,4]
        return %4 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="any.text.0"} : i32[box:9]
        %2 = input {name="any.box.0"} : i32[sample:3]
        %3 = gather_rows %1, %2 : i32[sample:3]
        %4 = gather_rows %0, %3 : f32[sample:3,4]
        return %4 as "y"
        "#,
    );
}

#[test]
fn gathered_rows_with_another_reader_stay() {
    stays(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="any.text.0"} : i32[box:9]
        %2 = input {name="any.box.0"} : i32[sample:3]
        %3 = gather_rows %0, %1 : f32[box:9,4]
        %4 = gather_rows %3, %2 : f32[sample:3,4]
        return %3 as "y"
        return %4 as "z"
        "#,
    );
}

#[test]
fn casts_that_say_nothing() {
    becomes(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = cast %0 {to=f32} : f32[text:12,4]
        %2 = cast %1 {to=f16} : f16[text:12,4]
        %3 = cast %2 {to=f32} : f32[text:12,4]
        %4 = cast %3 {to=f16} : f16[text:12,4]
        return %4 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = cast %0 {to=f16} : f16[text:12,4]
        return %1 as "y"
        "#,
    );
}

#[test]
fn probabilities_that_nothing_reads() {
    becomes(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="mask.text"} : f32[text:12]
        %2, %3 = attention %0, %0, %0, %1 {heads=2, probabilities=true, scale=0.3} : f32[text:12,4], f32[text:12,2,4]
        return %2 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="mask.text"} : f32[text:12]
        %2 = attention %0, %0, %0, %1 {heads=2, scale=0.3} : f32[text:12,4]
        return %2 as "y"
        "#,
    );
}

#[test]
fn scales_join_where_one_is_a_power_of_two() {
    becomes(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = scale %0 {factor=3.0} : f32[text:12,4]
        %2 = scale %1 {factor=0.5} : f32[text:12,4]
        %3 = scale %2 {factor=0.3} : f32[text:12,4]
        %4 = scale %3 {factor=1.0} : f32[text:12,4]
        return %4 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = scale %0 {factor=1.5} : f32[text:12,4]
        %2 = scale %1 {factor=0.3} : f32[text:12,4]
        return %2 as "y"
        "#,
    );
}

#[test]
fn a_power_of_two_moves_into_norms_and_linears() {
    becomes(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[4,4]
        %2 = param {value=g} : f32[4]
        %3 = param {value=b} : f32[4]
        %4 = linear %0, %1 : f32[text:12,4]
        %5 = layer_norm %0, %2, %3 {eps=1e-12} : f32[text:12,4]
        %6 = add %4, %5 : f32[text:12,4]
        %7 = scale %6 {factor=0.5} : f32[text:12,4]
        return %7 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[4,4]
        %2 = param {value=g} : f32[4]
        %3 = param {value=b} : f32[4]
        %4 = scale %1 {factor=0.5} : f32[4,4]
        %5 = linear %0, %4 : f32[text:12,4]
        %6 = scale %2 {factor=0.5} : f32[4]
        %7 = scale %3 {factor=0.5} : f32[4]
        %8 = layer_norm %0, %6, %7 {eps=1e-12} : f32[text:12,4]
        %9 = add %5, %8 : f32[text:12,4]
        return %9 as "y"
        "#,
    );
}

#[test]
fn a_factor_stays_where_a_parameter_has_another_use() {
    stays(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[4,4]
        %2 = linear %0, %1 : f32[text:12,4]
        %3 = scale %2 {factor=0.5} : f32[text:12,4]
        %4 = linear %3, %1 : f32[text:12,4]
        return %4 as "y"
        "#,
    );
}

#[test]
fn a_factor_stays_behind_an_activation() {
    stays(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[4,4]
        %2 = linear %0, %1 {activation=relu} : f32[text:12,4]
        %3 = scale %2 {factor=0.5} : f32[text:12,4]
        return %3 as "y"
        "#,
    );
}

#[test]
fn the_factor_of_attention_moves_into_its_query() {
    becomes(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="mask.text"} : f32[text:12]
        %2 = param {value=w} : f32[4,4]
        %3 = linear %0, %2 : f32[text:12,4]
        %4, %5 = attention %3, %0, %0, %1 {heads=2, probabilities=true, scale=0.5} : f32[text:12,4], f32[text:12,2,4]
        return %4 as "y"
        return %5 as "p"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="mask.text"} : f32[text:12]
        %2 = param {value=w} : f32[4,4]
        %3 = scale %2 {factor=0.5} : f32[4,4]
        %4 = linear %0, %3 : f32[text:12,4]
        %5, %6 = attention %4, %0, %0, %1 {heads=2, probabilities=true, scale=1.0} : f32[text:12,4], f32[text:12,2,4]
        return %5 as "y"
        return %6 as "p"
        "#,
    );
}

#[test]
fn a_factor_that_rounds_stays_on_attention() {
    stays(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="mask.text"} : f32[text:12]
        %2 = param {value=w} : f32[4,4]
        %3 = linear %0, %2 : f32[text:12,4]
        %4 = attention %3, %0, %0, %1 {heads=2, scale=0.7} : f32[text:12,4]
        return %4 as "y"
        "#,
    );
}

#[test]
fn queries_that_are_keys_too_keep_their_factor() {
    stays(
        "canonicalise",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="mask.text"} : f32[text:12]
        %2 = param {value=w} : f32[4,4]
        %3 = linear %0, %2 : f32[text:12,4]
        %4 = attention %3, %3, %0, %1 {heads=2, scale=0.5} : f32[text:12,4]
        return %4 as "y"
        "#,
    );
}
