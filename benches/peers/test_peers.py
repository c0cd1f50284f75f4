"""Tests of what needs no peer: standard library only."""

import unittest

import report
from catalogue import CASES, ENGINES, GQA_LENGTHS, OCTILES, engines_of, midpoints


def engine(median, minimum, error=0.0, agrees=True):
    """Figures of an engine, as `report.figures` makes them."""
    return {"median_ms": median, "min_ms": minimum, "max_abs_error": error, "agrees": agrees, "note": ""}


class Catalogue(unittest.TestCase):
    def test_midpoints_of_equal_shares(self):
        self.assertEqual(midpoints({1: 2, 5: 2}, 2), (1, 5))
        self.assertEqual(midpoints({7: 1, 3: 3}, 4), (3, 3, 3, 7))

    def test_octiles_are_those_of_the_histogram(self):
        total, below = sum(GQA_LENGTHS.values()), 0
        for index, length in enumerate(OCTILES):
            below = sum(count for value, count in GQA_LENGTHS.items() if value < length)
            rank = total * (2 * index + 1) / 16
            self.assertTrue(below <= rank <= below + GQA_LENGTHS[length])

    def test_lengths_fit_their_padding(self):
        for case in CASES.values():
            self.assertLessEqual(max(case.lengths), case.padded_to, case.name)
            self.assertLessEqual(case.skipped, set(ENGINES), case.name)

    def test_engines_asked_for_are_not_skipped(self):
        case = CASES["b1_pad512"]
        self.assertNotIn("torch-compile", engines_of(case, None))
        self.assertEqual(engines_of(case, ["torch-compile"]), ["torch-compile"])


class Report(unittest.TestCase):
    engines = {
        "onnxruntime": engine(120.0, 100.0),
        "openvino": engine(110.0, 105.0),
        "onnxruntime-int8": engine(50.0, 40.0),
        "lxpod-mixed": engine(100.0, 80.0),
    }

    def test_speedup_is_against_the_peer_with_the_best_median(self):
        ratios = report.speedups(self.engines)
        self.assertEqual(list(ratios), ["lxpod-mixed"])
        self.assertEqual(ratios["lxpod-mixed"]["float"]["peer"], "openvino")
        self.assertAlmostEqual(ratios["lxpod-mixed"]["float"]["of_medians"], 1.1)
        self.assertAlmostEqual(ratios["lxpod-mixed"]["float"]["of_minima"], 105 / 80)
        self.assertAlmostEqual(ratios["lxpod-mixed"]["int8"]["of_medians"], 0.5)

    def test_no_ratio_without_a_peer(self):
        self.assertEqual(report.speedups({"lxpod-fp32": engine(1.0, 1.0)}), {})

    def test_disagreement_is_named(self):
        entry = {"case": "b8", "engines": {"openvino": engine(1.0, 1.0, 0.5, False)}}
        (line,) = report.disagreements({"cases": [entry]})
        self.assertIn("b8: openvino is off by 5.0e-01", line)


if __name__ == "__main__":
    unittest.main()
