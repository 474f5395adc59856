"""Where jobs run: in this process, or on Ray and Ray Tune."""
