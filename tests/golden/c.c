//: a function
double area(double radius) {‸
//> 
//>     return M_PI * radius * radius;
//> }
//> 
//> int main
//= 
//=     return M_PI * radius * radius;
//= }

//: a condition
    if (circle == NULL) {
        ‸
    }
//> return -1;
//>     }
//= return -1;

//: a macro's arguments
    assert(‸);
//> radius > 0);
//= radius > 0

//: an include
#include ‸
//> <stdio.h>
//> #include <stdlib.h>
//= <stdio.h>

//: once more the same
    free(circle);
    ‸
//> free(circle);
//! stands above already
