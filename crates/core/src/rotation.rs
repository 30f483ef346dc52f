//! Takes in new leaves and roots, and never lets a broken one replace a good one.
